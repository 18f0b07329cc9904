//! `sim` with rules that can be broken on purpose: what `sim mutants` builds and runs.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    sim::cli::main()
}
