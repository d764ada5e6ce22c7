//! `--device` and `gpu-check` where no GPU can be used.

use crate::common::run_lctl;

#[test]
fn a_command_of_the_cpu_refuses_a_gpu_wherever_the_option_stands() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["--device", "cuda:1", "suite", "list"][..], &["suite", "list", "--device", "cuda:1"]] {
        let (status, stdout, stderr) = run_lctl(dir.path(), args);
        assert_eq!((status, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.contains("`lctl suite` cannot compute on cuda:1"), "{stderr}");
        assert!(stderr.contains("hint: leave --device out"), "{stderr}");
    }
}

#[test]
fn the_cpu_is_what_auto_means() {
    let dir = tempfile::tempdir().unwrap();
    let list = |device| run_lctl(dir.path(), &["recipe", "new", "--device", device]);
    let (auto, cpu) = (list("auto"), list("cpu"));
    assert!(auto.0 == 0 && auto.1.contains("soc-triage"), "{}", auto.2);
    assert_eq!(auto, cpu);
}

#[test]
fn what_names_no_device_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (status, _, stderr) = run_lctl(dir.path(), &["doctor", "--device", "cuda"]);
    assert_eq!(status, 2);
    assert!(stderr.contains("cuda:0 is the first"), "{stderr}");
}

#[test]
fn the_check_of_a_gpu_is_hidden_and_takes_no_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let (_, help, _) = run_lctl(dir.path(), &["--help"]);
    assert!(!help.contains("gpu-check"));
    let (status, _, stderr) = run_lctl(dir.path(), &["gpu-check", "--device", "cpu"]);
    assert_eq!(status, 2);
    assert!(stderr.contains("checks a GPU, not cpu"), "{stderr}");
}

/// The stages that are about training alone: the others take long on the stand-in.
#[cfg(feature = "cuda-host")]
#[test]
fn stages_of_the_check_are_run_by_name_on_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let device = lctl::cuda::under_test::name();
    let args = ["gpu-check", "--device", &device, "--only", "differences,curves", "--steps", "4", "--small"];
    let (status, table, stderr) = run_lctl(dir.path(), &[&args[..], &["--json", "gpu.json"]].concat());
    assert_eq!(status, 0, "{table}{stderr}");
    assert!(table.contains("curve bf16: 4 steps from ") && table.contains(", 0 failed, "), "{table}");
    assert_eq!(crate::common::names_in(dir.path()), ["gpu.json"]);
    let text = std::fs::read_to_string(dir.path().join("gpu.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["is_whole"], true);
    let stages: Vec<&str> =
        report["stages"].as_array().unwrap().iter().map(|stage| stage[0].as_str().unwrap()).collect();
    assert_eq!(stages, ["differences", "curves"]);
    let checks = report["checks"].as_array().unwrap();
    for kernel in ["rms_norm_backward", "swiglu_backward", "rope", "cross_entropy", "attention dk plain"] {
        let name = format!("{kernel} f32");
        assert!(checks.iter().any(|check| check["kernel"] == name && check["against"] == "slopes"), "{name}");
    }
    for curve in report["curves"].as_array().unwrap() {
        assert_eq!(curve["losses"].as_array().unwrap().len(), 4);
        // nothing but rounding
        let largest = curve["largest"].as_f64().unwrap();
        assert!(largest < if curve["what"] == "f32" { 1e-4 } else { 0.1 }, "{curve}");
    }
    let (status, _, stderr) = run_lctl(dir.path(), &["gpu-check", "--only", "curve"]);
    assert_eq!(status, 2);
    assert!(stderr.contains("there are steps, routing, "), "{stderr}");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (status, _, stderr) = run_lctl(dir.path(), &["gpu-check", "--json", "gpu.json"]);
    assert_eq!(status, 2);
    assert!(stderr.contains("this build has no CUDA") && stderr.contains("--features cuda"), "{stderr}");
    assert!(!dir.path().join("gpu.json").exists());
    let (_, doctor, _) = run_lctl(dir.path(), &["doctor", "--json"]);
    let doctor: serde_json::Value = serde_json::from_str(&doctor).unwrap();
    assert_eq!(doctor["gpu"]["built_in"], false);
    assert!(doctor["gpu"]["obstacle"].as_str().unwrap().contains("this build has no CUDA"));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_named_gpu_that_is_not_there_is_said_before_a_model_is_opened() {
    let setup = crate::finetune::Setup::new(&serde_json::json!({"model": {"path": "nowhere"}}));
    let (status, _, stderr) = setup.run(&["--device", "cuda:0", "--out", "run"]);
    assert_eq!(status, 2);
    assert!(stderr.contains("this build has no CUDA") && stderr.contains("--device cpu"), "{stderr}");
    assert!(!setup.path("run").exists());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("text.txt"), "text").unwrap();
    for args in [
        "generate nowhere -p text",
        "eval nowhere --perplexity text.txt",
        "imatrix nowhere text.txt -o i.gguf",
    ] {
        let args: Vec<&str> = args.split(' ').chain(["--device", "cuda:0"]).collect();
        let (status, stdout, stderr) = run_lctl(dir.path(), &args);
        assert_eq!((status, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.contains("this build has no CUDA") && stderr.contains("--device cpu"), "{stderr}");
    }
}
