//! Where the libraries of CUDA lie: as the loader finds them, else in a toolkit's folder.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

/// Returns the folders of toolkits that are looked into behind the loader's own: of `CUDA_HOME`, of `CUDA_PATH`, and the usual one.
fn folders(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
    let toolkits = named.filter(|toolkit| toolkit.is_absolute()).chain([PathBuf::from("/usr/local/cuda")]);
    toolkits.map(|toolkit| toolkit.join("lib64")).collect()
}

fn all_folders() -> Vec<PathBuf> {
    folders(|name| std::env::var_os(name).map(PathBuf::from))
}

/// Opens the first library of these names that there is: by the loader, then in the folders.
pub(super) fn open(names: &[&str]) -> Option<Library> {
    let folders = all_folders();
    let in_folders = folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
    // SAFETY: NVIDIA's libraries, which do nothing but set themselves up when they are opened.
    let load = |path: PathBuf| unsafe { Library::new(path) }.ok();
    names.iter().map(PathBuf::from).chain(in_folders).find_map(load)
}

/// Returns the file of cuBLAS, or an empty path if the system does not say; `None` if there is none. From then on its bindings find it.
pub(super) fn cublas() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(find_cublas).as_deref()
}

fn find_cublas() -> Option<PathBuf> {
    // the bindings take whatever of several names the loader knows. What is open already it knows by that name: so it finds what lies in
    // a folder, too, and what that needs
    // SAFETY: opens the library, as above.
    let is_known = || unsafe { cudarc::cublas::sys::is_culib_present() };
    let mut held = Vec::new();
    if !is_known() {
        for folder in all_folders() {
            for name in ["libcublasLt.so.13", "libcublas.so.13"] {
                // SAFETY: as above.
                held.extend(unsafe { Library::new(folder.join(name)) }.ok());
            }
            if is_known() {
                break;
            }
        }
    }
    // never closed: the bindings open it again when they are used first
    held.extend(open(&["libcublas.so.13", "libcublas.so"]));
    held.into_iter().for_each(std::mem::forget);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    is_known().then(|| mapped(&maps, "libcublas.so").unwrap_or_default())
}

/// Returns the first file of memory's map whose name begins with `name`.
fn mapped(maps: &str, name: &str) -> Option<PathBuf> {
    // address, permissions, offset, device, inode, then the path
    let path = |line: &str| line.find('/').map(|at| PathBuf::from(&line[at..]));
    let is_it =
        |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
    maps.lines().filter_map(path).find(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolkits_that_are_named_come_before_the_usual_one() {
        let of = |home: Option<&str>, path: Option<&str>| {
            folders(|name| if name == "CUDA_HOME" { home } else { path }.map(PathBuf::from))
        };
        let usual = "/usr/local/cuda/lib64";
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(of(None, None), paths(&[usual]));
        assert_eq!(of(Some("/a"), Some("/b")), paths(&["/a/lib64", "/b/lib64", usual]));
        // what lies beside the working directory is nobody's toolkit
        assert_eq!(of(Some(""), Some("toolkit")), paths(&[usual]));
    }

    #[test]
    fn a_library_is_named_by_where_it_is_mapped() {
        let maps = "7f00-7f10 r-xp 00000000 00:01 7  /usr/lib/libcublasLt.so.13.0.2\n\
                    7f10-7f20 rw-p 00000000 00:00 0 \n\
                    7f20-7f30 r-xp 00000000 00:01 9  /opt/a b/libcublas.so.13.0.2\n";
        assert_eq!(mapped(maps, "libcublas.so"), Some(PathBuf::from("/opt/a b/libcublas.so.13.0.2")));
        assert_eq!(mapped(maps, "libnccl.so"), None);
    }

    #[test]
    fn what_is_nowhere_is_not_opened() {
        assert!(open(&["libthere-is-no-such-library.so.1"]).is_none());
    }
}
