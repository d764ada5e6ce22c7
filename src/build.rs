//! Tells a release build of a clone its commit, unless `LCTL_COMMIT` does (docs/cli.md). Debug builds have none: they would be
//! made anew with every commit.

use std::env;
use std::path::Path;
use std::process::Command;

/// Below the package's directory: whatever may end up in the program, or decides whether the sources are those of the commit.
const SOURCES: [&str; 6] = ["src", "Cargo.toml", "Cargo.lock", "datasets", "evalsuites", "recipes"];

/// What git writes when the commit or what is staged changes.
const GIT_FILES: [&str; 3] = ["HEAD", "index", "logs/HEAD"];

fn main() {
    println!("cargo:rerun-if-changed=src/build.rs");
    println!("cargo:rerun-if-env-changed=LCTL_COMMIT");
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if !is_release || env::var_os("LCTL_COMMIT").is_some() {
        return;
    }
    let Some(dir) = env::var_os("CARGO_MANIFEST_DIR") else { return };
    let dir = Path::new(&dir);
    // a package that lies in somebody else's repository is not of its commit
    if !dir.join(".git").exists() {
        return;
    }
    let Some(commit) = git(dir, &["rev-parse", "HEAD"]) else { return };
    let Some(changes) = git(dir, &["status", "--porcelain", "--untracked-files=no"]) else { return };
    let mark = if changes.is_empty() { "" } else { "-dirty" };
    println!("cargo:rustc-env=LCTL_COMMIT={commit}{mark}");
    let git_files = GIT_FILES.iter().filter_map(|name| git(dir, &["rev-parse", "--git-path", name]));
    for path in git_files.chain(SOURCES.map(str::to_owned)) {
        // a file that is not there counts as changed by every build
        if dir.join(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
}

/// Returns what git prints, without the line's end; nothing if there is no git, or it refuses.
fn git(dir: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    // without the option `status` may write the index, which would make every build the first
    command.arg("--no-optional-locks").args(args).current_dir(dir);
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(variable);
    }
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim_end().to_owned())
}
