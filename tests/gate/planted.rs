//! Regressions planted in a trained model, sec-llama-21m: each is caught, and changes that do no harm pass.
//!
//! The model has read CISA's list of exploited vulnerabilities. The suite takes its sentences apart: which of four
//! endings belongs to a beginning? The rows are made here, of the test data, and are not kept.

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
name: endings
data:
  rows: {path: rows.jsonl, format: jsonl}
tasks:
  - id: plain
    type: multiple_choice
    data: rows
    item: "{{ id }}"
    cluster: "{{ product }}"
    critical: true
    margin: 0.03
    prompt: "{{ beginning }}"
    choices: {field: endings}
    target: {index: "{{ answer }}"}
    metrics: [acc]
  - id: chat
    type: multiple_choice
    data: rows
    limit: 500
    item: "{{ id }}"
    cluster: "{{ product }}"
    critical: true
    margin: 0.03
    chat_template: on
    prompt: "{{ beginning }}"
    choices: {field: endings}
    target: {index: "{{ answer }}"}
    metrics: [acc]
"#;

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
        // the model can do it: four endings, one is right
        assert!(field.accuracy("baseline", 0) > 0.6, "{}", field.accuracy("baseline", 0));
        field
    }))
}

/// Returns a row per sentence of 10 to 60 words: its first half, and among the endings of three other products its own.
fn rows(data: &Path) -> String {
    let text = std::fs::read_to_string(data.join("corpora/known_exploited_vulnerabilities.json")).unwrap();
    let json: Json = serde_json::from_str(&text).unwrap();
    let mut halves: Vec<(String, String, String, String)> = Vec::new();
    for entry in json["vulnerabilities"].as_array().unwrap() {
        let field = |name: &str| entry[name].as_str().unwrap().trim().to_owned();
        let sentence = field("shortDescription");
        let words: Vec<&str> = sentence.split(' ').collect();
        if (10..=60).contains(&words.len()) {
            let (first, second) = words.split_at(words.len() / 2);
            let product = format!("{} {}", field("vendorProject"), field("product"));
            halves.push((field("cveID"), product, first.join(" "), second.join(" ")));
        }
    }
    let mut lines = String::new();
    for (index, (id, product, beginning, ending)) in halves.iter().enumerate() {
        let draw = |step: u32, n: usize| {
            Philox::new(7, Purpose::Shuffle).below(step, index as u64, n as u64) as usize
        };
        let mut endings: Vec<&str> = Vec::new();
        for step in 1.. {
            let (_, other, _, wrong) = &halves[draw(step, halves.len())];
            if other != product && wrong != ending && !endings.contains(&wrong.as_str()) {
                endings.push(wrong);
            }
            if endings.len() == 3 {
                break;
            }
        }
        let answer = draw(0, 4);
        endings.insert(answer, ending);
        let row = json!({"id": id, "product": product, "beginning": beginning, "endings": endings, "answer": answer});
        lines.push_str(&format!("{row}\n"));
    }
    lines
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

    fn task(&self, run: &str, task: usize) -> Json {
        let report = std::fs::read_to_string(self.path(run).join("report.json")).unwrap();
        let report: Json = serde_json::from_str(&report).unwrap();
        report["suites"][0]["tasks"][task].clone()
    }

    fn accuracy(&self, run: &str, task: usize) -> f64 {
        self.task(run, task)["metrics"][0]["value"].as_f64().unwrap()
    }

    /// Evaluates a candidate and returns the gate's exit status and what it says.
    fn gate(&self, model: &Path, name: &str, options: &[&str]) -> (i32, String) {
        self.eval(model, name, options);
        let (status, said) = self.lctl(&["gate", "baseline", name]);
        println!(
            "{name}: plain {:.3} to {:.3}, chat {:.3} to {:.3}, exit {status}",
            self.accuracy("baseline", 0),
            self.accuracy(name, 0),
            self.accuracy("baseline", 1),
            self.accuracy(name, 1),
        );
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
        for task in [0, 1] {
            assert_eq!(field.task(name, task)["samples_sha256"], field.task("baseline", task)["samples_sha256"]);
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
    assert!(said.contains("- endings/plain: worse by ") && said.ends_with("FAIL\n"), "{said}");
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
        assert!(said.contains("- endings/chat: worse by "), "{name}: {said}");
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
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
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
    for (name, factors, alpha, expected) in [
        ("whole", &factors, ALPHA, 0),
        ("shifted", &shifted, ALPHA, 3),
        ("scaled", &factors, 2 * ALPHA, 3),
    ] {
        let adapter = field.path(&format!("adapter-{name}"));
        write_adapter(&adapter, factors, alpha);
        let options = ["--adapter", adapter.to_str().unwrap()];
        let (status, said) = field.gate(&base, &format!("adapted-{name}"), &options);
        assert_eq!(status, expected, "{name}: {said}");
        assert_eq!(said.contains("- endings/plain: worse by "), expected == 3, "{name}: {said}");
    }
}
