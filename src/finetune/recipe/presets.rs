//! The recipes that come with the program.

/// A recipe that comes with the program.
pub struct Preset {
    pub name: &'static str,
    pub about: &'static str,
    /// The commented recipe.
    pub text: &'static str,
}

macro_rules! presets {
    ($($name:literal, $file:literal, $about:literal;)*) => {
        /// Every recipe that comes with the program.
        pub static PRESETS: &[Preset] = &[$(Preset {
            name: $name,
            about: $about,
            text: include_str!(concat!("../../../recipes/", $file)),
        }),*];
    };
}

presets! {
    "soc-triage", "soc-triage.yaml", "verdict, category and severity of log excerpts, as JSON";
    "ir-report", "ir-report.yaml", "incident reports out of an analyst's timeline";
    "phishing", "phishing.yaml", "phishing or legitimate mail";
    "query-translate", "query-translate.yaml", "what a KQL, SPL or Sigma query selects, as JSON";
    "1b-lora", "presets/1b-lora.yaml", "LoRA of a model of about 1 billion parameters on one GPU, your own data";
    "8b-lora", "presets/8b-lora.yaml", "LoRA of a model of about 8 billion parameters on one GPU, your own data";
    "70b-qlora", "presets/70b-qlora.yaml", "QLoRA of a model of about 70 billion parameters on one GPU, your own data";
    "dpo", "presets/dpo.yaml", "direct preference optimisation over pairs of answers";
}
