//! What several test modules share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "../examples/make_checkpoint.rs"]
#[allow(dead_code, reason = "its main is for the example")]
pub mod make_checkpoint;

#[path = "../examples/make_datasets/main.rs"]
#[allow(dead_code, reason = "its main is for the example")]
pub mod make_datasets;

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
    let mut command = Command::new(env!("CARGO_BIN_EXE_lctl"));
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

/// Returns the sorted names of everything in a directory.
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Compares with tests/golden/NAME; with `LCTL_UPDATE_SNAPSHOTS=1` writes it instead.
pub fn assert_snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("LCTL_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(text, expected, "{} differs; LCTL_UPDATE_SNAPSHOTS=1 writes it anew", path.display());
}
