//! Tells the program its commit, and builds what is not Rust: the kernels of feature `cuda`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Builds what a feature needs; says what went wrong.
type Build = fn() -> Result<(), String>;

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rustc-check-cfg=cfg(gpu)");
    commit();
    let features: [(&str, Build); 2] =
        [("CARGO_FEATURE_CUDA", kernels), ("CARGO_FEATURE_CUDA_HOST", host_kernels)];
    for (_, build) in features.into_iter().filter(|(name, _)| env::var_os(name).is_some()) {
        // there is a device of some kind
        println!("cargo::rustc-cfg=gpu");
        if let Err(problem) = build() {
            eprintln!("error: {problem}");
            exit(1);
        }
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
const KERNELS: [&str; 11] = [
    "attention_mma",
    "attention_paged",
    "attention_paged_mma",
    "attention_plain",
    "dequantize",
    "elementwise",
    "loss",
    "moments",
    "norm",
    "optimizer",
    "routing",
];

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
    let out = out_dir()?;
    for_all(&KERNELS, |name| {
        compile(&nvcc, &folder.join(format!("{name}.cu")), &out.join(format!("{name}.fatbin")))
    })
}

fn out_dir() -> Result<PathBuf, String> {
    Ok(PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: cargo runs this")?))
}

/// Calls `build` with every name, as many at a time as cargo says.
fn for_all(names: &[&str], build: impl Fn(&str) -> Result<(), String> + Sync) -> Result<(), String> {
    let n_jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let build_all = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            build(name)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..names.len().min(n_jobs)).map(|_| scope.spawn(build_all)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a compilation panicked".into())))
    })
}

/// Before the name of a kernel, where the preprocessor has run: `KERNEL` of `common.cuh` under `host.h`.
const KERNEL_MARK: &str = "extern \"C\" __attribute__((noinline)) void ";

/// Compiles the CUDA kernels as C++ for the stand-in device, into a library that is linked.
fn host_kernels() -> Result<(), String> {
    let folder = Path::new("src/cuda/kernels");
    println!("cargo::rerun-if-changed={}", folder.display());
    for variable in ["CXX", "AR", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let (folder, out) = (root.join(folder), out_dir()?);
    let mut tables = String::new();
    for name in KERNELS {
        tables += &format!("extern const host::Entry LCTL_HOST_{name}[];\n");
    }
    let all: Vec<String> = KERNELS.iter().map(|name| format!("LCTL_HOST_{name}")).collect();
    tables += &format!("static const host::Entry* const LCTL_HOST_TABLES[] = {{{}}};\n", all.join(", "));
    write(&out.join("host_tables.h"), &tables)?;
    for_all(&KERNELS, |name| {
        let from = folder.join(format!("{name}.cu"));
        let source = said(host_compiler(&folder, &out).args(["-E", "-P"]).arg(&from), &from)?;
        let unit = out.join(format!("{name}.host.cpp"));
        write(&unit, &host_unit(name, &from, &source)?)?;
        let object = out.join(format!("{name}.host.o"));
        said(host_compiler(&folder, &out).arg("-c").arg(&unit).arg("-o").arg(object), &from).map(drop)
    })?;
    let entry = folder.join("host_entry.cpp");
    let object = out.join("host_entry.o");
    said(host_compiler(&folder, &out).arg("-c").arg(&entry).arg("-o").arg(&object), &entry)?;
    let library = out.join("liblctl_cuda_host.a");
    // an archive that is there would keep objects of an earlier build
    drop(std::fs::remove_file(&library));
    let mut archive = Command::new(env::var_os("AR").unwrap_or_else(|| "ar".into()));
    archive.arg("crs").arg(&library).arg(&object);
    archive.args(KERNELS.map(|name| out.join(format!("{name}.host.o"))));
    said(&mut archive, &library)?;
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static=lctl_cuda_host");
    let cxx = if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "macos") { "c++" } else { "stdc++" };
    println!("cargo::rustc-link-lib={cxx}");
    Ok(())
}

fn host_compiler(folder: &Path, out: &Path) -> Command {
    let mut command = Command::new(env::var_os("CXX").unwrap_or_else(|| "g++".into()));
    // contraction would fuse what the kernels round; glibc's checks take a jump to another fiber's stack for an overflow
    command.args(["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-w", "-U_FORTIFY_SOURCE", "-x", "c++"]);
    command.arg("-I").arg(folder).arg("-I").arg(out);
    command
}

/// Returns a unit that has the kernels of a file and a table of them.
fn host_unit(name: &str, file: &Path, preprocessed: &str) -> Result<String, String> {
    let text = preprocessed.split_whitespace().collect::<Vec<_>>().join(" ");
    let names = text.split(KERNEL_MARK).skip(1).filter_map(|rest| rest.split('(').next()).map(str::trim);
    let entries: String = names.map(|name| format!("    host::entry<&{name}>(\"{name}\"),\n")).collect();
    if entries.is_empty() {
        return Err(format!("{}: no kernel was found behind `{KERNEL_MARK}`", file.display()));
    }
    Ok(format!(
        "#include {:?}\n#include \"host_entry.h\"\nextern const host::Entry LCTL_HOST_{name}[] = {{\n{entries}    {{nullptr, nullptr, nullptr}},\n}};\n",
        file.display().to_string()
    ))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Runs a command; returns what it prints.
fn said(command: &mut Command, of: &Path) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| {
        format!("{program}: {error}\nhint: the feature `cuda-host` needs a C++17 compiler and ar; CXX and AR name others")
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {program}: {}\n{errors}", of.display(), output.status))
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
