//! Manifests written and read back, and hostile ones.

use serde_json::json;

use super::*;

fn digest(c: char) -> String {
    c.to_string().repeat(64)
}

pub fn example() -> Json {
    json!({
        "lctl_manifest": 1,
        "lctl": {"version": "0.1.0", "commit": null, "sha256": digest('0')},
        "job": {"command": "quantize", "settings": {
            "type": "Q8_0", "tensor_types": [{"pattern": "attn", "format": "F16"}], "output_tensor_type": null,
            "token_embedding_type": null, "pure": false, "leave_output_tensor": false, "allow_requantize": false,
            "override_kv": [], "pre": null, "split_max_bytes": null, "directory": null,
        }},
        "inputs": [{"role": "model", "name": null, "path": "m.gguf", "sha256": digest('1'), "manifest": null,
                    "files": [{"name": "m.gguf", "sha256": digest('1')}]}],
        "outputs": [{"role": "model", "path": "o.gguf", "content": "file", "sha256": digest('2')}],
        "samples": null,
        "licences": {"base": "mit", "adapter": null, "data": []},
        "run": {"seconds": 1.5},
    })
}

fn parse(json: &Json) -> Result<Manifest, String> {
    Manifest::parse(Path::new("m.json"), json.to_string().as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn what_is_written_is_read_back() {
    let manifest = parse(&example()).unwrap();
    assert_eq!(Manifest::parse(Path::new("m"), manifest.text().as_bytes()).unwrap(), manifest);
    assert_eq!(serde_json::from_str::<Json>(&manifest.text()).unwrap(), example());
}

#[test]
fn the_digest_leaves_the_run_out_and_nothing_else() {
    let manifest = parse(&example()).unwrap();
    let changed = |pointer: &str, value: Json| {
        let mut json = example();
        *json.pointer_mut(pointer).unwrap() = value;
        parse(&json).unwrap().digest()
    };
    assert_eq!(changed("/run", json!({"seconds": 2})), manifest.digest());
    assert_ne!(changed("/licences/base", json!("apache-2.0")), manifest.digest());
    assert_ne!(changed("/outputs/0/sha256", json!(digest('3'))), manifest.digest());
    let mut without = example();
    without.as_object_mut().unwrap().shift_remove("run");
    assert_eq!(manifest.digest(), hex(&Sha256::digest(format!("{without:#}\n"))));
}

#[test]
fn every_prefix_is_an_error() {
    let text = parse(&example()).unwrap().text();
    for len in 0..text.len() - 2 {
        let error = Manifest::parse(Path::new("m.json"), &text.as_bytes()[..len]).unwrap_err();
        assert!(matches!(error, ManifestError::Syntax { .. }), "{len}: {error}");
    }
}

#[test]
fn what_does_not_belong_is_named() {
    for (pointer, value, expected) in [
        ("/lctl_manifest", json!(2), "m.json: a manifest of version 2; this program reads version 1"),
        ("/lctl_manifest", json!("1"), "m.json: a manifest of version \"1\"; this program reads version 1"),
        ("/job/command", json!("format_disk"), "unknown variant `format_disk`"),
        ("/job/settings/pure", json!("yes"), "invalid type: string \"yes\", expected a boolean"),
        ("/job/settings", json!({"type": "Q8_0"}), "missing field `tensor_types`"),
        ("/inputs/0/role", json!("suite"), "`quantize` with 0 inputs `model`, which takes 1 to 1"),
        (
            "/inputs/0/sha256",
            json!(digest('9')),
            "`sha256` of the input `model` (m.gguf) is not that of its files",
        ),
        ("/inputs/0/files", json!([]), "the input `model` (m.gguf) has no files"),
        ("/inputs/0/files/0/sha256", json!("../../x"), "input m.gguf: `../../x` is no SHA-256"),
        ("/outputs", json!([]), "these are not the outputs of `quantize`"),
        ("/outputs/0/role", json!("report"), "these are not the outputs of `quantize`"),
        ("/outputs/0/path", json!(".."), "the output `..` names no file"),
        ("/outputs/0/path", json!("a\0b"), "names no file"),
        ("/outputs/0/sha256", json!(digest('A')), "is no SHA-256 in lower-case hexadecimal"),
        ("/licences", json!({"base": "mit"}), "missing field"),
    ] {
        let mut json = example();
        *json.pointer_mut(pointer).unwrap() = value;
        let error = parse(&json).unwrap_err();
        assert!(error.contains(expected), "{pointer}: {error}");
    }
    let mut json = example();
    json["job"]["settings"]["shell"] = "rm -r".into();
    assert!(parse(&json).unwrap_err().contains("unknown field `shell`"));
    let mut json = example();
    let input = json["inputs"][0].clone();
    json["inputs"].as_array_mut().unwrap().push(input);
    assert!(parse(&json).unwrap_err().contains("`quantize` with 2 inputs `model`"));
    assert_eq!(
        parse(&json!({"lctl_report": 2})).unwrap_err(),
        "m.json: no `lctl_manifest`: this is no manifest"
    );
    assert_eq!(parse(&json!([1])).unwrap_err(), "m.json: no `lctl_manifest`: this is no manifest");
}
