//! Ctrl-C in the middle of a run: no half file, exit status 130.
#![cfg(unix)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::model::Model;
use crate::common::{lctl, names_in};

#[test]
fn an_interrupted_run_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    // tens of seconds of work for the portable kernels
    Model { n_layers: 24, d_model: 1024, d_ff: 4096, ..Model::default() }.write(dir.path(), "m.gguf");
    let path = out.path().join("out.gguf");
    let args = ["quantize", "m.gguf", "--type", "Q2_K", "--isa", "portable", "--threads", "1", "-o"];
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut child = lctl(dir.path(), &args).arg(&path).stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        // the partial file shows that the run is under way
        while names_in(out.path()).is_empty() {
            assert!(child.try_wait().unwrap().is_none(), "ended before its output began");
            assert!(started.elapsed() < Duration::from_secs(60), "no output began");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        // SAFETY: kill() takes any numbers; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(names_in(out.path()), Vec::<String>::new());
    }
}
