//! The `fewsync` command.

fn main() -> std::process::ExitCode {
    fewsync::cli::main()
}
