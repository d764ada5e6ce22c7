use super::*;

const SMALL: &str = "version: 1
kind: finetune
model: {path: m}
adapter: {type: lora, r: 8, alpha: 16}
data:
  train: [{path: a.jsonl}]
  max_seq_len: 512
train: {epochs: 1, lr: 1e-4}
";

const QUANTIZATIONS: [&str; 2] = ["Q4_K_M", "Q8_0"];

fn read(text: &str, sets: &[&str]) -> Result<Recipe, String> {
    let mut document = Document::parse(Path::new("r.yaml"), text.to_owned()).unwrap();
    for set in sets {
        document.set(set).map_err(|error| error.to_string())?;
    }
    Recipe::read(&document, &QUANTIZATIONS).map_err(|error| error.to_string())
}

fn problems(text: &str, sets: &[&str]) -> Vec<String> {
    read(text, sets).unwrap_err().lines().map(str::to_owned).collect()
}

#[test]
fn a_small_recipe_has_defaults_and_1e_4_is_a_number() {
    let recipe = read(SMALL, &[]).unwrap();
    assert_eq!((recipe.train.lr, recipe.train.length, recipe.train.seed), (1e-4, Length::Epochs(1), 42));
    assert_eq!(recipe.adapter.low_rank.as_ref().unwrap().target_modules, Targets::AllLinear);
    assert_eq!((&recipe.export[..], &recipe.log[..]), (&[Export::Peft][..], &[Log::Jsonl, Log::Csv][..]));
    assert_eq!(recipe.checkpoint, Checkpoint::default());
    let full = SMALL.replace("type: lora, r: 8, alpha: 16", "type: none");
    assert_eq!(read(&full, &[]).unwrap().export, [Export::MergedSafetensors]);
}

#[test]
fn the_whole_recipe_reads_as_itself() {
    let more = [
        "adapter.type=dora",
        "adapter.target_modules=[q_proj, v_proj]",
        "adapter.rank_pattern={down_proj: 4}",
        "data.val_fraction=0.1",
        "data.val_group=cluster",
        "data.template_variables={enable_thinking: false}",
        "data.train.0.format=chat",
        "data.train.0.type=csv",
        "data.scan={secrets: warn, suites: [evalsuites]}",
        "train.lr_schedule=wsd",
        "train.warmup_ratio=0.1",
        "eval={every_steps: 10, early_stopping: {patience: 2}, forgetting: {text: t.txt}, gate: {suite: s.yaml}}",
        "export=[peft, {merged-gguf: q4_k_m}]",
        "output=runs/x",
    ];
    for recipe in [read(SMALL, &[]).unwrap(), read(SMALL, &more).unwrap()] {
        let text = recipe.to_yaml();
        let again = read(&text, &[]).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(Recipe { sha256: recipe.sha256.clone(), ..again }, recipe, "{text}");
    }
}

#[test]
fn everything_wrong_is_said_at_once_with_its_place() {
    let text = "version: 2
kind: finetune
modle: {path: m}
adapter: {type: lorra, r: 0, alpha: 16, dropout: 1}
data:
  train: [{path: a.jsonl, format: chatt, weight: 0}]
  truncation: cut
train: {epochs: 1, max_steps: 5, lr: fast, warmup_steps: 1, warmup_ratio: 0.1, optimizer: adam}
export: [gguf, {merged-gguf: q4_k_n}]
";
    let expected = "r.yaml:1:1: `model` is missing
r.yaml:1:10: this program reads recipes of version 1, not 2
r.yaml:3:1: unknown key `modle`; did you mean `model`?
r.yaml:4:17: unknown `type` `lorra`; did you mean `lora`?
r.yaml:4:27: `r` must be from 1 to 65536, not 0
r.yaml:4:50: `dropout` must be from 0 up to, not including, 1, not 1
r.yaml:6:3: `max_seq_len` is missing
r.yaml:6:35: unknown `format` `chatt`; did you mean `chat`?
r.yaml:6:50: `weight` must be above 0, at most 1000, not 0
r.yaml:7:15: unknown `truncation` `cut`
r.yaml:8:31: `epochs` and `max_steps` both say how long the run is
r.yaml:8:38: `lr` must be a number, not text
r.yaml:8:75: `warmup_steps` and `warmup_ratio` both say how long the warm-up is
r.yaml:8:91: unknown `optimizer` `adam`; did you mean `adamw`?
r.yaml:9:10: unknown item 1 `gguf`
r.yaml:9:30: unknown `merged-gguf` `q4_k_n`; did you mean `Q4_K_M`?";
    assert_eq!(read(text, &[]).unwrap_err(), expected);
}

#[test]
fn sections_that_contradict_each_other_are_errors_at_the_key_that_says_so() {
    for (sets, expected) in [
        (
            vec!["adapter={type: none}", "model.quantization=nf4"],
            "--set model.quantization=nf4: quantized weights cannot be trained (`adapter.type: none`)",
        ),
        (
            vec!["model.init=random"],
            "--set model.init=random: an adapter of random weights learns nothing: take `adapter: {type: none}`",
        ),
        (
            vec!["adapter={type: none, r: 4}"],
            "--set adapter={type: none, r: 4}: `r` means nothing with `type: none`, which trains every weight",
        ),
        (
            vec!["adapter={type: none}", "export=[gguf-lora]"],
            "--set export=[gguf-lora]: there is no adapter to export with `type: none`; take merged-safetensors or merged-gguf",
        ),
        (
            vec!["adapter.type=dora", "export=[gguf-lora]"],
            "--set export=[gguf-lora]: a GGUF adapter cannot hold the magnitudes of `type: dora`; take peft or a merged form",
        ),
        (
            vec!["eval.early_stopping={patience: 1}"],
            "--set eval.early_stopping={patience: 1}: there is nothing to validate on: give `data.val_fraction` or `data.validation`",
        ),
        (
            vec!["data.val_fraction=0.1", "data.validation=[{path: b}]"],
            "--set data.val_fraction=0.1: `validation` names files already",
        ),
        (vec!["data.val_group=x"], "--set data.val_group=x: nothing is held out: `val_fraction` is missing"),
        (
            vec!["data.scan.eval_overlap=fail"],
            "--set data.scan.eval_overlap=fail: overlap with which suites? name them with `suites`",
        ),
        (vec!["dpo={beta: 0.1}"], "--set dpo={beta: 0.1}: means nothing with `kind: finetune`"),
        (
            vec!["kind=dpo", "data.train_on=all"],
            "--set data.train_on=all: `kind: dpo` trains on the answers of each pair: leave it out, or `assistant`",
        ),
        (
            vec!["data.validation=[{path: b, weight: 2}]"],
            "--set data.validation=[{path: b, weight: 2}]: `weight` must be 1 in a file to validate on, not 2",
        ),
        (
            vec!["data.chat_template=plain", "data.template_variables={a: 1}"],
            "--set data.template_variables={a: 1}: `chat_template: plain` has no variables",
        ),
        (
            vec!["train.epochs=2", "train.max_steps=3"],
            "--set train.max_steps=3: `epochs` and `max_steps` both say how long the run is",
        ),
        (vec!["train.lr=null"], "--set train.lr=null: `lr` is missing"),
        (
            vec!["train.max_step=null"],
            "--set train.max_step=null: unknown key `max_step`; did you mean `max_steps`?",
        ),
        (
            vec!["kind=dpo", "data.packing=true"],
            "--set data.packing=true: pairs are not packed: leave it out, or `off`",
        ),
        (
            vec!["kind=dpo", "data.truncation=split"],
            "--set data.truncation=split: a pair cannot be cut: take `error` or `drop`",
        ),
        (
            vec!["kind=dpo", "data.train.0.format=chat"],
            "--set data.train.0.format=chat: `kind: dpo` needs pairs of answers",
        ),
        (
            vec!["data.train.0.format=preference"],
            "--set data.train.0.format=preference: pairs of answers need `kind: dpo`",
        ),
        (
            vec!["train.optimizer=lion", "train.eps=1e-6"],
            "--set train.eps=1e-6: `eps` means nothing with `optimizer: lion`",
        ),
        (
            vec!["train.decay_ratio=0.2"],
            "--set train.decay_ratio=0.2: `decay_ratio` means nothing with a schedule other than `wsd`",
        ),
        (
            vec!["adapter.target_modules=(q"],
            "--set adapter.target_modules=(q: `(q` is no regular expression: unclosed group",
        ),
        (
            vec!["data.template_variables={messages: 1}"],
            "--set data.template_variables={messages: 1}: `messages` is set by the conversation",
        ),
        (vec!["data.date=tomorrow"], "--set data.date=tomorrow: `tomorrow` is no day as in 2026-01-31"),
        (
            vec!["export=[merged-gguf]"],
            "--set export=[merged-gguf]: of which type? write {merged-gguf: q4_k_m}",
        ),
        (
            vec!["train.lr.x=1"],
            "--set train.lr.x=1: there is nothing to hold `x`: what stands before it is a single value",
        ),
    ] {
        assert_eq!(problems(SMALL, &sets), [expected], "{sets:?}");
    }
}

#[test]
fn what_is_set_takes_the_place_of_the_files_other_key_and_null_takes_away() {
    let train = |sets: &[&str]| read(SMALL, sets).unwrap().train;
    assert_eq!(train(&["train.max_steps=3"]).length, Length::MaxSteps(3));
    assert_eq!(train(&["train={max_steps: 3, lr: 1}"]).length, Length::MaxSteps(3));
    assert_eq!(train(&["train.epochs=null", "train.max_steps=3"]).length, Length::MaxSteps(3));
    assert_eq!(train(&["train.max_steps=null"]).length, Length::Epochs(1));
    let steps = SMALL.replace("epochs: 1", "max_steps: 9, warmup_steps: 2");
    let recipe = read(&steps, &["train.epochs=2", "train.warmup_ratio=0.1"]).unwrap();
    assert_eq!(recipe.train.length, Length::Epochs(2));
    assert_eq!(recipe.train.warmup, crate::finetune::Warmup::Ratio(0.1));
    // the file itself may not have both
    let both = SMALL.replace("epochs: 1", "epochs: 1, max_steps: 9");
    assert_eq!(problems(&both, &[]), ["r.yaml:8:31: `epochs` and `max_steps` both say how long the run is"]);
    assert_eq!(train(&["train.epochs=2"]).length, Length::Epochs(2));
    let whole = SMALL.replace("train: {epochs", "eval: {every_steps: 3}\noutput: x\ntrain: {epochs");
    let recipe = read(&whole, &["eval=null", "output=null", "data.template_variables.x=null"]).unwrap();
    assert_eq!((recipe.eval, recipe.output), (Eval::default(), None));
    assert!(recipe.data.template_variables.is_empty());
}

#[test]
fn a_dpo_recipe_has_its_own_defaults() {
    let recipe = read(SMALL, &["kind=dpo"]).unwrap();
    assert_eq!((recipe.dpo, recipe.data.packing), (Some(Dpo::default()), crate::data::pack::Packing::Off));
    assert_eq!(read(SMALL, &["kind=dpo", "dpo.beta=0.3"]).unwrap().dpo.unwrap().beta, 0.3);
}

#[test]
fn a_schedule_follows_from_the_length() {
    let sets = [
        "train.lr_schedule=wsd",
        "train.decay_ratio=0.25",
        "train.warmup_ratio=0.03",
        "train.min_lr_ratio=0.1",
    ];
    let schedule = read(SMALL, &sets).unwrap().train.schedule(110);
    assert_eq!((schedule.warmup_steps, schedule.decay), (4, crate::finetune::Decay::Wsd { decay_steps: 28 }));
    assert_eq!((schedule.peak_lr, schedule.final_lr), (1e-4, 1e-4 * 0.1));
}

#[test]
fn every_preset_is_a_recipe() {
    assert!(PRESETS.len() >= 7);
    for preset in PRESETS {
        let document = Document::parse(Path::new(preset.name), preset.text.to_owned()).unwrap();
        let recipe = Recipe::read(&document, &QUANTIZATIONS).unwrap_or_else(|error| panic!("{error}"));
        assert!(recipe.output.is_some() && !preset.about.is_empty());
    }
}

#[test]
fn the_files_of_a_recipe_have_the_keys_that_name_them() {
    let sets = ["data.scan.suites=[e]", "eval.gate={suite: s, policy: p}", "data.chat_template=c.jinja"];
    let recipe = read(SMALL, &sets).unwrap();
    let files: Vec<(String, String)> =
        recipe.files().into_iter().map(|(key, path)| (key, path.display().to_string())).collect();
    let expected = [
        ("data.train.0.path", "a.jsonl"),
        ("data.chat_template", "c.jinja"),
        ("data.scan.suites.0", "e"),
        ("eval.gate.suite", "s"),
        ("eval.gate.policy", "p"),
    ];
    assert_eq!(files, expected.map(|(key, path)| (key.to_owned(), path.to_owned())));
}
