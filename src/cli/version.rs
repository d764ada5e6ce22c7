//! What this program is: its version, source, platform and features.

use std::sync::LazyLock;

use crate::provenance::Program;

/// Cargo features and whether this build has them.
pub const FEATURES: [(&str, bool); 4] = [
    ("cuda", cfg!(feature = "cuda")),
    ("cuda-host", cfg!(feature = "cuda-host")),
    ("hub", cfg!(feature = "hub")),
    ("parquet", cfg!(feature = "parquet")),
];

/// Returns the names of the features that this build has.
pub fn features() -> Vec<&'static str> {
    FEATURES.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name).collect()
}

/// Returns what the program was built for: `x86_64-linux-gnu`.
pub fn target() -> String {
    let libc = match () {
        () if cfg!(target_env = "gnu") => "-gnu",
        () if cfg!(target_env = "musl") => "-musl",
        () if cfg!(target_env = "msvc") => "-msvc",
        () => "",
    };
    format!("{}-{}{libc}", std::env::consts::ARCH, std::env::consts::OS)
}

/// Returns what stands for the commit: the build's `LCTL_COMMIT`, or that it was not said.
pub fn commit() -> String {
    Program::current().commit.unwrap_or_else(|| "not said at build (LCTL_COMMIT)".to_owned())
}

/// What `--version` prints behind the program's name.
pub static LONG: LazyLock<String> = LazyLock::new(long);

fn long() -> String {
    let features = match features() {
        features if features.is_empty() => "none".to_owned(),
        features => features.join(", "),
    };
    let build = if cfg!(debug_assertions) { "debug: slow, for tests" } else { "release" };
    format!(
        "{}\ncommit    {}\ntarget    {}\nfeatures  {features}\nbuild     {build}",
        env!("CARGO_PKG_VERSION"),
        commit(),
        target()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_of_the_package_is_named() {
        let package = include_str!("../../Cargo.toml");
        let features = package.split("[features]\n").nth(1).unwrap().split("\n[").next().unwrap();
        let keys = features.lines().filter_map(|line| line.split_once(" = ").map(|(key, _)| key));
        let mut keys: Vec<&str> = keys.filter(|key| *key != "default" && !key.starts_with('#')).collect();
        keys.sort_unstable();
        assert_eq!(keys, FEATURES.map(|(name, _)| name));
    }
}
