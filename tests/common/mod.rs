//! What several test modules share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

#[path = "../examples/make_checkpoint.rs"]
#[allow(dead_code, reason = "its main is for the example")]
pub mod make_checkpoint;

#[path = "../examples/make_datasets/main.rs"]
#[allow(dead_code, reason = "its main is for the example")]
pub mod make_datasets;

/// Returns the repository's folder, or the one of `LCTL_TEST_ROOT` that has its files: for tests that run where they were not built.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| given("LCTL_TEST_ROOT", env!("CARGO_MANIFEST_DIR")))
}

/// Returns the program that is tested, or the one of `LCTL_TEST_PROGRAM`.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| given("LCTL_TEST_PROGRAM", env!("CARGO_BIN_EXE_lctl")))
}

/// Returns what a variable names, whole, since tests start programs in other folders.
fn given(variable: &str, built: &str) -> PathBuf {
    let Some(path) = std::env::var_os(variable) else { return PathBuf::from(built) };
    std::fs::canonicalize(&path).unwrap_or_else(|e| panic!("{variable}={}: {e}", path.display()))
}

/// Returns the folder of test data that is not part of the repository, if `LCTL_TEST_DATA` names one.
///
/// Tests that need it print a line and return without it.
pub fn test_data() -> Option<PathBuf> {
    let dir = std::env::var_os("LCTL_TEST_DATA").map(PathBuf::from);
    if dir.is_none() {
        println!("skipped: LCTL_TEST_DATA is not set");
    }
    dir
}

/// Returns the program with these arguments, in `dir`, cut off from the environment's settings.
pub fn lctl(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).current_dir(dir);
    let own = ["LCTL_ISA", "RUST_BACKTRACE", "HF_ENDPOINT", "HF_TOKEN"];
    for variable in own.into_iter().chain(lctl::finetune::parallel::VARIABLES) {
        command.env_remove(variable);
    }
    command
}

/// Runs the program; returns status, stdout and stderr.
pub fn run_lctl(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = lctl(dir, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// Runs a command that must not wait for a pipe that nobody writes into; returns status and stderr.
///
/// # Panics
/// If it does not end within a minute; it is ended then.
#[cfg(unix)]
pub fn run_without_waiting(mut command: Command) -> (i32, String) {
    use std::process::Stdio;
    use std::time::{Duration, Instant};
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("{command:?} waits");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code().unwrap_or(-1), String::from_utf8(stderr).unwrap())
}

/// Makes a pipe that nobody writes into.
#[cfg(unix)]
pub fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Returns the sorted names of everything in a directory.
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Compares with tests/golden/NAME; with `LCTL_UPDATE_SNAPSHOTS=1` writes it instead.
pub fn assert_snapshot(name: &str, text: &str) {
    let path = root().join("tests/golden").join(name);
    if std::env::var_os("LCTL_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(text, expected, "{} differs; LCTL_UPDATE_SNAPSHOTS=1 writes it anew", path.display());
}
