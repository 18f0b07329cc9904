//! `fleet completion`: completions for shells.

use clap::CommandFactory;

/// Writes the completion script of `shell` to stdout.
pub fn run(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut crate::Cli::command(), "fleet", &mut std::io::stdout());
}
