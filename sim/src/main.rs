//! `sim`: see [`sim::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    sim::cli::main()
}
