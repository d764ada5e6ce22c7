use std::process::ExitCode;

fn main() -> ExitCode {
    lctl::cli::main()
}
