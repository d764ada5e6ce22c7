//! Models with adapters merged into them.

use std::path::Path;

use lctl::provenance::{Manifest, manifest_path};
use lctl::tensor::TensorSource;
use lctl::tensor::gguf::{Gguf, Value};
use lctl::tensor::safetensors::SafeTensors;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{flip, lctl, manifest, sha256, succeed, without_run};
use crate::common::names_in;
use crate::decoder::merge::write_adapter;
use crate::finetune::Setup;

const CARD: &str = "---\nlicense: apache-2.0\n---\n# A model\n";

/// Puts a model with a card, and an adapter of it, into a directory as `base` and `adapter`.
pub fn place(dir: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (from, to) in [("decoder/llama", "base"), ("adapter/llama", "adapter")] {
        std::fs::create_dir(dir.join(to)).unwrap();
        for name in names_in(&golden.join(from)) {
            std::fs::copy(golden.join(from).join(&name), dir.join(to).join(&name)).unwrap();
        }
    }
    std::fs::write(dir.join("base/README.md"), CARD).unwrap();
}

/// Returns a directory with a model, an adapter, and what they became, as `out`.
fn workplace() -> TempDir {
    let tmp = tempfile::tempdir().unwrap();
    place(tmp.path());
    assert_eq!(succeed(tmp.path(), "merge base adapter -o out --quiet"), "");
    tmp
}

#[test]
fn a_merged_directory_has_a_manifest() {
    let tmp = workplace();
    let dir = tmp.path();
    assert_eq!(names_in(dir), ["adapter", "base", "out", "out.manifest.json"]);
    assert_eq!(names_in(&dir.join("out")), ["README.md", "config.json", "model.safetensors"]);
    assert_eq!(std::fs::read_to_string(dir.join("out/README.md")).unwrap(), CARD);
    let found = manifest(dir, "out.manifest.json");
    assert_eq!(found["job"], json!({"command": "merge", "settings": {"type": null, "directory": null}}));
    let files = |paths: &[&str]| -> Vec<Json> {
        let named = |path: &&str| {
            let name = Path::new(path).file_name().unwrap().to_str().unwrap();
            json!({"name": name, "sha256": sha256(&dir.join(path))})
        };
        paths.iter().map(named).collect()
    };
    let read = |at: usize| {
        let input = &found["inputs"][at];
        (input["role"].clone(), input["path"].clone(), input["files"].clone())
    };
    assert_eq!(
        read(0),
        (json!("model"), json!("base"), json!(files(&["base/config.json", "base/model.safetensors"])))
    );
    assert_eq!(read(1), (json!("model_files"), json!("base"), json!(files(&["base/README.md"]))));
    assert_eq!(
        read(2),
        (
            json!("adapter"),
            json!("adapter"),
            json!(files(&["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]))
        )
    );
    let output = |path: &str| json!({"role": "model", "path": path, "content": "file", "sha256": sha256(&dir.join(path))});
    assert_eq!(
        found["outputs"],
        json!(["out/config.json", "out/model.safetensors", "out/README.md"].map(output))
    );
    assert_eq!(found["licences"], json!({"base": "apache-2.0", "adapter": "unknown", "data": []}));
    // the run apart, it is the same again, whatever the threads
    succeed(dir, "merge base adapter -o out --force --quiet --threads 1 --isa portable");
    assert_eq!(without_run(manifest(dir, "out.manifest.json")), without_run(found));
    // and of what is made of the result it is the parent
    succeed(dir, "merge out adapter -o deep/twice/ --quiet");
    let parent = Manifest::open(&manifest_path(&dir.join("out"))).unwrap().digest();
    let chained = manifest(dir, "deep/twice.manifest.json");
    for at in [0, 1] {
        assert_eq!(chained["inputs"][at]["manifest"], json!(parent), "{chained}");
    }
    succeed(dir, "merge base adapter -o bare --no-manifest --quiet");
    assert!(!dir.join("bare.manifest.json").exists());
}

#[test]
fn a_merge_is_replayed_to_the_bit() {
    let tmp = workplace();
    let dir = tmp.path();
    std::fs::create_dir(dir.join("work")).unwrap();
    let stdout = succeed(dir, "replay out.manifest.json --work work --threads 1 --quiet --json");
    let said: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&said["command"], &said["agrees"]), (&json!("merge"), &json!(true)), "{said}");
    assert_eq!(said["outputs"].as_array().unwrap().len(), 3);
    assert_eq!(names_in(&dir.join("work")), Vec::<String>::new());
    let stdout = succeed(dir, "replay out.manifest.json --check");
    assert_eq!(
        (stdout.matches("same     ").count(), stdout.ends_with("the bits agree\n")),
        (3, true),
        "{stdout}"
    );
    flip(&dir.join("out/model.safetensors"), 1);
    let (status, stdout, _) = lctl(dir, "replay out.manifest.json --check");
    assert!(status == 3 && stdout.contains("differs") && stdout.contains("the bits differ"), "{stdout}");
    // what is made again is compared with the manifest, wherever the inputs are
    std::fs::create_dir(dir.join("moved")).unwrap();
    for name in ["base", "adapter"] {
        std::fs::rename(dir.join(name), dir.join("moved").join(name)).unwrap();
    }
    let (status, _, stderr) = lctl(dir, "replay out.manifest.json");
    assert!(status == 2 && stderr.contains("is not there") && stderr.contains("say where"), "{stderr}");
    let moved = "replay out.manifest.json --model moved/base --input adapter=moved/adapter";
    assert!(succeed(dir, moved).ends_with("the bits agree\n"));
    for (file, said) in [
        ("adapter/adapter_model.safetensors", "adapter moved/adapter (adapter_model.safetensors): SHA-256"),
        ("base/model.safetensors", "model moved/base (model.safetensors): SHA-256"),
        ("base/README.md", "model_files moved/base (README.md): SHA-256"),
    ] {
        flip(&dir.join("moved").join(file), 1);
        let (status, _, stderr) = lctl(dir, moved);
        // files that changed stay changed
        assert!(status == 2 && stderr.contains(said), "{file}: {stderr}");
    }
}

#[test]
fn quantized_merges_are_replayed_and_keep_their_licence() {
    let setup = Setup::new(&json!({}));
    let dir = setup.dir.path();
    std::fs::write(setup.path("base/README.md"), CARD).unwrap();
    let module = "model.layers.1.mlp.down_proj";
    let source = SafeTensors::open_dir(&setup.path("base")).unwrap();
    let shape = source.find(&format!("{module}.weight")).unwrap().shape.clone();
    let pair = [
        (format!("{module}.lora_A.weight"), vec![1, shape[1]], vec![0.5; shape[1]]),
        (format!("{module}.lora_B.weight"), vec![shape[0], 1], vec![0.25; shape[0]]),
    ];
    write_adapter(&setup.path("adapter"), 1, &pair);
    succeed(dir, "merge base adapter -t int8 -o m.gguf --quiet");
    let found = manifest(dir, "m.gguf.manifest.json");
    assert_eq!(found["job"]["settings"], json!({"type": "Q8_0", "directory": "base"}));
    assert_eq!(
        found["outputs"],
        json!([{"role": "model", "path": "m.gguf", "content": "file", "sha256": sha256(&setup.path("m.gguf"))}])
    );
    let licence = |name: &str| {
        let gguf = Gguf::open(&setup.path(name)).unwrap();
        gguf.metadata().get("general.license").and_then(Value::as_str).map(str::to_owned)
    };
    assert_eq!(licence("m.gguf").as_deref(), Some("apache-2.0"));
    // a GGUF into a GGUF
    succeed(dir, "quantize base -t f16 -o base.gguf --quiet");
    for (args, settings) in [
        ("-o own.gguf", json!({"type": null, "directory": null})),
        ("-t q4_0 -o q4.gguf", json!({"type": "Q4_0", "directory": null})),
    ] {
        succeed(dir, &format!("merge base.gguf adapter {args} --quiet"));
        let name = args.rsplit(' ').next().unwrap();
        let found = manifest(dir, &format!("{name}.manifest.json"));
        assert_eq!(found["job"]["settings"], settings);
        let parent = Manifest::open(&manifest_path(&setup.path("base.gguf"))).unwrap().digest();
        assert_eq!(found["inputs"][0]["manifest"], json!(parent));
        assert_eq!(licence(name).as_deref(), Some("apache-2.0"));
        assert_eq!(found["licences"]["base"], "apache-2.0");
        succeed(dir, &format!("replay {name}.manifest.json --quiet"));
    }
    // the model may be named after its directory, which has another name by now
    std::fs::rename(setup.path("base"), setup.path("elsewhere")).unwrap();
    let stdout = succeed(dir, "replay m.gguf.manifest.json --model elsewhere");
    assert!(stdout.ends_with("the bits agree\n"), "{stdout}");
}
