//! Tells the program its commit, and builds what is not Rust: the kernels of feature `cuda`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    commit();
    if env::var_os("CARGO_FEATURE_CUDA").is_some()
        && let Err(problem) = kernels()
    {
        eprintln!("error: {problem}");
        exit(1);
    }
}

/// Below the package's directory: whatever may end up in the program, or decides whether the sources are those of the commit.
const SOURCES: [&str; 6] = ["src", "Cargo.toml", "Cargo.lock", "datasets", "evalsuites", "recipes"];

/// What git writes when the commit or what is staged changes.
const GIT_FILES: [&str; 3] = ["HEAD", "index", "logs/HEAD"];

/// Tells a release build of a clone its commit, unless `LCTL_COMMIT` does (docs/cli.md). Debug builds have none: they would be
/// made anew with every commit.
fn commit() {
    println!("cargo::rerun-if-env-changed=LCTL_COMMIT");
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
    println!("cargo::rustc-env=LCTL_COMMIT={commit}{mark}");
    let git_files = GIT_FILES.iter().filter_map(|name| git(dir, &["rev-parse", "--git-path", name]));
    for path in git_files.chain(SOURCES.map(str::to_owned)) {
        // a file that is not there counts as changed by every build
        if dir.join(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
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

/// Each becomes a fatbin of its own; `src/cuda/module.rs` embeds them.
const KERNELS: [&str; 7] =
    ["attention_mma", "attention_plain", "dequantize", "elementwise", "loss", "norm", "optimizer"];

/// Machine code for 8.0 and 9.0, and PTX that the driver compiles for anything else from 8.0 on.
const TARGETS: [&str; 2] = ["arch=compute_80,code=[sm_80,compute_80]", "arch=compute_90,code=sm_90"];

/// Compiles the CUDA kernels to `OUT_DIR/NAME.fatbin`, and says which CUDA they need as `LCTL_CUDA_VERSION`.
fn kernels() -> Result<(), String> {
    let folder = Path::new("src/cuda/kernels");
    println!("cargo::rerun-if-changed={}", folder.display());
    for variable in ["LCTL_NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let nvcc = nvcc()?;
    println!("cargo::rustc-env=LCTL_CUDA_VERSION={}", version(&nvcc)?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: cargo runs this")?);
    let n_jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let compile_all = || {
        while let Some(name) = KERNELS.get(next.fetch_add(1, Ordering::Relaxed)) {
            compile(&nvcc, &folder.join(format!("{name}.cu")), &out.join(format!("{name}.fatbin")))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..KERNELS.len().min(n_jobs)).map(|_| scope.spawn(compile_all)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a compilation panicked".into())))
    })
}

fn compile(nvcc: &Path, from: &Path, to: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin", "--compress-mode=size"]);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    command.arg("-o").arg(to).arg(from);
    let output = command.output().map_err(|error| format!("{}: {error}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{}: {}\n{said}\nhint: nvcc needs a C++ compiler of the host (g++)",
        from.display(),
        output.status
    ))
}

fn nvcc() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("LCTL_NVCC") {
        let path = PathBuf::from(path);
        return match path.is_file() {
            true => Ok(path),
            false => Err(format!("LCTL_NVCC is {}, where no file is", path.display())),
        };
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let homes = homes.map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = homes.chain(env::split_paths(&path)).chain([PathBuf::from("/usr/local/cuda/bin")]);
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    folders.map(|folder| folder.join(&name)).find(|path| path.is_file()).ok_or_else(|| {
        "the feature `cuda` needs nvcc 13.0, which was not found\n\
         hint: `.ci/cuda-toolkit.sh DIR` fetches one without root; then build with CUDA_HOME=DIR, or set LCTL_NVCC"
            .to_owned()
    })
}

/// Returns the version as the driver counts: 13000 for 13.0.
fn version(nvcc: &Path) -> Result<u32, String> {
    let output = Command::new(nvcc)
        .arg("--version")
        .output()
        .map_err(|error| format!("{}: {error}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let parsed = numbers.and_then(|numbers| {
        let (major, minor) = numbers.trim().split_once('.')?;
        Some(1000 * major.parse::<u32>().ok()? + 10 * minor.parse::<u32>().ok()?)
    });
    let version = parsed.ok_or_else(|| format!("{} does not say its version:\n{text}", nvcc.display()))?;
    if version < 12_080 {
        return Err(format!(
            "{} is of CUDA {}.{}; 12.8 is the oldest that can do what is asked of it, 13.0 what the kernels are tested with",
            nvcc.display(),
            version / 1000,
            version % 1000 / 10
        ));
    }
    if version != 13_000 {
        println!(
            "cargo::warning=the kernels are tested with nvcc 13.0, not {}.{}; the driver must know that version",
            version / 1000,
            version % 1000 / 10
        );
    }
    Ok(version)
}
