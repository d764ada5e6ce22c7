//! Regressions planted in a trained model, sec-llama-21m: each is caught, and changes that do no harm pass.
//!
//! The model has read CISA's list of exploited vulnerabilities, and is too small to answer questions about it. The suite
//! asks for what it can do: predict the sentences, and their second halves from the first in a chat. The rows are made
//! here, of the test data, and are not kept.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use half::bf16;
use lctl::kernel::philox::{Philox, Purpose};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::common::{run_lctl, test_data};

const SUITE: &str = r#"version: 1
name: sentences
data:
  rows: {path: rows.jsonl, format: jsonl}
tasks:
  - id: text
    type: perplexity
    data: rows
    item: "{{ id }}"
    critical: true
    margin: 0.01
    text: "{{ beginning }} {{ ending }}"
  - id: chat
    type: multiple_choice
    data: rows
    item: "{{ id }}"
    critical: true
    chat_template: "on"
    prompt: "{{ beginning }}"
    choices: ["{{ ending }}", "{{ other }}"]
    target: "{{ ending }}"
    metrics: [byte_prob]
"#;

/// Sentences, each of another product.
const ROWS: usize = 240;

/// A workplace with the suite, and the model's run over it in `baseline`.
struct Field {
    dir: TempDir,
    model: PathBuf,
}

/// Returns the workplace that all tests share; `None` without test data.
fn field() -> Option<&'static Field> {
    static FIELD: OnceLock<Field> = OnceLock::new();
    let data = test_data()?;
    Some(FIELD.get_or_init(|| {
        let field = Field { dir: tempfile::tempdir().unwrap(), model: data.join("models/sec-llama-21m") };
        std::fs::write(field.path("suite.yaml"), SUITE).unwrap();
        std::fs::write(field.path("rows.jsonl"), rows(&data)).unwrap();
        field.eval(&field.model, "baseline", &[]);
        // the model can do it: bits per byte of text, of which white noise takes 8 and English about 1
        let bits = field.figure("baseline", "text");
        assert!(bits < 1.3, "{bits}");
        field
    }))
}

/// Returns a row per product: a sentence of 10 to 60 words in two halves, and the second half of the row before it.
fn rows(data: &Path) -> String {
    let text = std::fs::read_to_string(data.join("corpora/known_exploited_vulnerabilities.json")).unwrap();
    let json: Json = serde_json::from_str(&text).unwrap();
    let mut known = HashSet::new();
    let mut rows: Vec<Json> = Vec::new();
    let mut other = "an attacker to execute code.".to_owned();
    for entry in json["vulnerabilities"].as_array().unwrap() {
        let field = |name: &str| entry[name].as_str().unwrap().trim().to_owned();
        let sentence = field("shortDescription");
        let words: Vec<&str> = sentence.split(' ').collect();
        if (10..=60).contains(&words.len()) && known.insert(field("product")) {
            let (beginning, ending) = words.split_at(words.len() / 2);
            let (beginning, ending) = (beginning.join(" "), ending.join(" "));
            rows.push(
                json!({"id": field("cveID"), "beginning": beginning, "ending": ending, "other": other}),
            );
            other = ending;
        }
    }
    assert!(rows.len() >= ROWS);
    rows.iter().take(ROWS).map(|row| format!("{row}\n")).collect()
}

impl Field {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lctl(&self, args: &[&str]) -> (i32, String) {
        let (status, stdout, stderr) = run_lctl(self.dir.path(), args);
        (status, stdout + &stderr)
    }

    fn eval(&self, model: &Path, out: &str, options: &[&str]) {
        let model = model.to_str().unwrap();
        let mut args = vec!["eval", model, "--suite", "suite.yaml", "--out", out, "--quiet"];
        args.extend(options);
        let (status, said) = self.lctl(&args);
        assert_eq!(status, 0, "{said}");
    }

    fn task(&self, run: &str, task: &str) -> Json {
        let report = std::fs::read_to_string(self.path(run).join("report.json")).unwrap();
        let report: Json = serde_json::from_str(&report).unwrap();
        let tasks = report["suites"][0]["tasks"].as_array().unwrap();
        tasks.iter().find(|found| found["id"] == task).unwrap().clone()
    }

    /// Returns what the gate compares: bits per byte of the text, or the endings' probability per byte.
    fn figure(&self, run: &str, task: &str) -> f64 {
        let metrics = self.task(run, task)["metrics"].clone();
        let is_it = |metric: &&Json| metric["name"] == "bits_per_byte" || metric["name"] == "byte_prob";
        metrics.as_array().unwrap().iter().find(is_it).unwrap()["value"].as_f64().unwrap()
    }

    /// Evaluates a candidate and returns the gate's exit status and what it says.
    fn gate(&self, model: &Path, name: &str, options: &[&str]) -> (i32, String) {
        self.eval(model, name, options);
        let (status, said) = self.lctl(&["gate", "baseline", name]);
        let change = |task| (self.figure("baseline", task), self.figure(name, task));
        println!("{name}: text {:?}, chat {:?}, exit {status}", change("text"), change("chat"));
        (status, said)
    }

    fn quantize(&self, kind: &str) -> PathBuf {
        let out = self.path(&format!("{kind}.gguf"));
        let (model, file) = (self.model.to_str().unwrap(), out.to_str().unwrap());
        let (status, said) = self.lctl(&["quantize", model, "--type", kind, "-o", file, "--quiet"]);
        assert_eq!(status, 0, "{said}");
        out
    }

    /// Returns a copy of the model without its weights.
    fn copy(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        std::fs::create_dir(&dir).unwrap();
        for entry in std::fs::read_dir(&self.model).unwrap().map(Result::unwrap) {
            if entry.file_name() != "model.safetensors" {
                let file = dir.join(entry.file_name());
                std::fs::write(file, std::fs::read(entry.path()).unwrap()).unwrap();
            }
        }
        dir
    }
}

#[test]
fn the_same_model_passes_to_the_last_bit() {
    let Some(field) = field() else { return };
    let gguf = field.quantize("BF16");
    for (name, model, options) in [
        ("again", &field.model, ["--threads", "1"]),
        ("batches", &field.model, ["--batch-tokens", "61"]),
        ("gguf", &gguf, ["--threads", "2"]),
    ] {
        let (status, said) = field.gate(model, name, &options);
        assert_eq!(status, 0, "{name}: {said}");
        assert!(said.contains("- all samples are equal to the last bit\nPASS\n"), "{name}: {said}");
        for task in ["text", "chat"] {
            assert_eq!(
                field.task(name, task)["samples_sha256"],
                field.task("baseline", task)["samples_sha256"]
            );
        }
    }
}

#[test]
fn eight_bits_pass() {
    let Some(field) = field() else { return };
    let (status, said) = field.gate(&field.quantize("Q8_0"), "q8_0", &[]);
    assert_eq!(status, 0, "{said}");
    assert!(!said.contains("equal to the last bit"), "{said}");
}

#[test]
fn two_bits_are_caught() {
    let Some(field) = field() else { return };
    let (status, said) = field.gate(&field.quantize("Q2_K"), "q2_k", &[]);
    assert_eq!(status, 3, "{said}");
    assert!(said.contains("- sentences/text: worse by ") && said.ends_with("FAIL\n"), "{said}");
}

/// Templates that are not the model's: the shape of another family, and one that expects the parts of a message where
/// this program, as most, gives its text.
const WRONG_TEMPLATES: [(&str, &str); 2] = [
    (
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    ),
    (
        "parts",
        "<s>{% for m in messages %}### {{ m['role'] }}\n{% for part in m['content'] %}{{ part['text'] }}{% endfor %}\n\
         {% endfor %}### assistant\n",
    ),
];

#[test]
fn a_wrong_chat_template_is_caught() {
    let Some(field) = field() else { return };
    for (name, template) in WRONG_TEMPLATES {
        let dir = field.copy(name);
        std::fs::copy(field.model.join("model.safetensors"), dir.join("model.safetensors")).unwrap();
        let path = dir.join("tokenizer_config.json");
        let mut config: Json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["chat_template"] = template.into();
        std::fs::write(path, config.to_string()).unwrap();
        let (status, said) = field.gate(&dir, &format!("template-{name}"), &[]);
        assert_eq!(status, 3, "{name}: {said}");
        assert!(said.contains("- sentences/chat: worse by "), "{name}: {said}");
        assert!(said.contains("note: chat template: SHA-256 "), "{name}: {said}");
    }
}

const RANK: usize = 4;
const ALPHA: usize = 8;

/// The matrices of a low-rank update: name of the weight, A [rank, inputs], B [outputs, rank].
type Factors = Vec<(String, (usize, Vec<f32>), (usize, Vec<f32>))>;

/// Writes the model with a random low-rank matrix taken out of its query and value projections; returns the matrices.
fn take_out(model: &Path, dir: &Path) -> Factors {
    let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut factors = Factors::new();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut names = file.names();
    names.sort();
    for (index, name) in names.into_iter().enumerate() {
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::BF16);
        let mut data = tensor.data().to_vec();
        if name.ends_with("q_proj.weight") || name.ends_with("v_proj.weight") {
            let [outputs, inputs] = *tensor.shape() else { panic!("{name}: {:?}", tensor.shape()) };
            let draw = |step: u32, n: usize| -> Vec<f32> {
                let stream = Philox::new(index as u64, Purpose::Shuffle);
                (0..n).map(|at| 0.4 * (stream.uniform(step, at as u64) - 0.5)).collect()
            };
            let (a, b) = (draw(0, RANK * inputs), draw(1, outputs * RANK));
            for (at, pair) in data.chunks_exact_mut(2).enumerate() {
                let (row, column) = (at / inputs, at % inputs);
                let product: f32 = (0..RANK).map(|r| b[row * RANK + r] * a[r * inputs + column]).sum();
                let weight = bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
                let left = bf16::from_f32(weight - ALPHA as f32 / RANK as f32 * product);
                pair.copy_from_slice(&left.to_le_bytes());
            }
            factors.push((name.to_owned(), (inputs, a), (outputs, b)));
        }
        tensors.push((name.to_owned(), tensor.shape().to_vec(), data));
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    factors
}

/// Writes an adapter in PEFT's layout.
fn write_adapter(dir: &Path, factors: &Factors, alpha: usize) {
    std::fs::create_dir(dir).unwrap();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": alpha, "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"], "bias": "none", "fan_in_fan_out": false,
    });
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    for (name, (inputs, a), (outputs, b)) in factors {
        let module = name.strip_suffix(".weight").unwrap();
        let name = |of: &str| format!("base_model.model.{module}.lora_{of}.weight");
        tensors.push((name("A"), vec![RANK, *inputs], bytes(a)));
        tensors.push((name("B"), vec![*outputs, RANK], bytes(b)));
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("adapter_model.safetensors")).unwrap();
}

/// An adapter that puts back what was taken out makes the model what it was. The same adapter with its layers in
/// another order, or scaled wrongly, does not.
#[test]
fn a_mangled_adapter_is_caught() {
    let Some(field) = field() else { return };
    let base = field.copy("base");
    let factors = take_out(&field.model, &base);
    let mut shifted = factors.clone();
    let names: Vec<String> = factors.iter().map(|(name, ..)| name.clone()).collect();
    for (at, (name, ..)) in shifted.iter_mut().enumerate() {
        // the two kinds alternate in the file, so that shapes fit
        *name = names[(at + 2) % names.len()].clone();
    }
    for (name, factors, alpha, expected) in
        [("whole", &factors, ALPHA, 0), ("shifted", &shifted, ALPHA, 3), ("scaled", &factors, 2 * ALPHA, 3)]
    {
        let adapter = field.path(&format!("adapter-{name}"));
        write_adapter(&adapter, factors, alpha);
        let options = ["--adapter", adapter.to_str().unwrap()];
        let (status, said) = field.gate(&base, &format!("adapted-{name}"), &options);
        assert_eq!(status, expected, "{name}: {said}");
        assert_eq!(said.contains("- sentences/text: worse by "), expected == 3, "{name}: {said}");
    }
}
