//! What is trained: everything, or what an adapter adds, in PEFT's terms.

use super::Error;

/// Which parameters there are to train.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// All weights of the model.
    Full,
    LowRank(LowRankSpec),
}

/// A low-rank adapter: the settings of PEFT's LoraConfig (0.21) under its names.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankSpec {
    /// Rank of the pairs (arXiv:2106.09685).
    pub r: usize,
    /// A pair's product is scaled by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Probability that a value of a pair's input is dropped in training, below 1.
    pub lora_dropout: f32,
    pub target_modules: TargetModules,
    /// Modules trained whole and saved with the adapter, by name or the end of one.
    pub modules_to_save: Vec<String>,
    /// Ranks of modules whose name a pattern fits, whole or from a dot on; the first that fits counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// The same for `lora_alpha`.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Scales by `lora_alpha / sqrt(r)` (arXiv:2312.03732).
    pub use_rslora: bool,
    /// Trains the rows' norms apart from their directions (arXiv:2402.09353).
    pub use_dora: bool,
}

/// Which linear layers get a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// All but the output layer.
    AllLinear,
    /// Those of these names, or of names that end in a dot and one of these.
    Names(Vec<String>),
    /// Those whose whole name this regular expression fits.
    Matching(String),
}

impl LowRankSpec {
    /// Returns an adapter of rank `r` for all linear layers, `lora_alpha` twice as much, without dropout.
    pub fn new(r: usize) -> Self {
        LowRankSpec {
            r,
            lora_alpha: 2.0 * r as f64,
            lora_dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            modules_to_save: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_rslora: false,
            use_dora: false,
        }
    }

    /// Errors on numbers that no adapter can have.
    pub(super) fn check(&self) -> Result<(), Error> {
        let ranks = || self.rank_pattern.iter().map(|(_, rank)| *rank).chain([self.r]);
        if let Some(rank) = ranks().find(|rank| !(1..=usize::from(u16::MAX)).contains(rank)) {
            return Err(bad("r", rank, "a rank from 1 to 65535"));
        }
        let mut alphas = self.alpha_pattern.iter().map(|(_, alpha)| *alpha).chain([self.lora_alpha]);
        if let Some(alpha) = alphas.find(|alpha| !alpha.is_finite()) {
            return Err(bad("lora_alpha", alpha, "a number"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(bad("lora_dropout", self.lora_dropout, "a probability below 1"));
        }
        Ok(())
    }

    /// Returns the first pattern of another rank or alpha, and what it is of, that fits none of these modules.
    pub(super) fn unfit_pattern(&self, modules: &[&str]) -> Result<Option<(&'static str, &str)>, Error> {
        let ranks = self.rank_pattern.iter().map(|(pattern, _)| ("rank_pattern", pattern));
        let alphas = self.alpha_pattern.iter().map(|(pattern, _)| ("alpha_pattern", pattern));
        for (setting, pattern) in ranks.chain(alphas) {
            let regex = regex(setting, pattern, &behind_a_dot(pattern))?;
            let mut fits_any = false;
            for module in modules {
                fits_any |= regex.is_match(module).map_err(bad_pattern(setting, pattern))?;
            }
            if !fits_any {
                return Ok(Some((setting, pattern)));
            }
        }
        Ok(None)
    }

    /// Returns rank and scale of the module of that name.
    pub(crate) fn rank_and_scale(&self, module: &str) -> Result<(usize, f32), Error> {
        let rank = first_fit("rank_pattern", &self.rank_pattern, module)?.unwrap_or(self.r);
        let alpha = first_fit("alpha_pattern", &self.alpha_pattern, module)?.unwrap_or(self.lora_alpha);
        // a rank is at most 65535
        let by = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, (alpha / by) as f32))
    }
}

fn bad(setting: &'static str, found: impl ToString, expected: &'static str) -> Error {
    Error::Setting { setting, found: found.to_string(), expected }
}

/// Returns the value of the first pattern that fits the name, whole or from a dot on.
fn first_fit<T: Copy>(
    setting: &'static str,
    patterns: &[(String, T)],
    module: &str,
) -> Result<Option<T>, Error> {
    for (pattern, value) in patterns {
        if fits(setting, pattern, &behind_a_dot(pattern), module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

impl TargetModules {
    /// Returns true if the linear layer of that name gets a pair.
    pub(super) fn takes(&self, module: &str, is_output: bool) -> Result<bool, Error> {
        match self {
            TargetModules::AllLinear => Ok(!is_output),
            TargetModules::Names(names) => Ok(names.iter().any(|name| is_named(module, name))),
            TargetModules::Matching(pattern) => {
                fits("target_modules", pattern, &format!("^(?:{pattern})$"), module)
            }
        }
    }
}

/// Returns true if the module has that name, or one that ends in a dot and it.
pub(super) fn is_named(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn fits(setting: &'static str, pattern: &str, whole: &str, module: &str) -> Result<bool, Error> {
    regex(setting, pattern, whole)?.is_match(module).map_err(bad_pattern(setting, pattern))
}

/// Returns what fits the names that a pattern fits whole or from a dot on.
fn behind_a_dot(pattern: &str) -> String {
    format!(r"^(?:.*\.)?(?:{pattern})$")
}

fn regex(setting: &'static str, pattern: &str, whole: &str) -> Result<fancy_regex::Regex, Error> {
    fancy_regex::Regex::new(whole).map_err(bad_pattern(setting, pattern))
}

fn bad_pattern(setting: &'static str, pattern: &str) -> impl FnOnce(fancy_regex::Error) -> Error {
    let pattern = pattern.to_owned();
    move |source| Error::Pattern { setting, pattern, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: &str = "model.layers.1.self_attn.q_proj";

    #[test]
    fn targets_are_matched_as_peft_matches_them() {
        let names =
            |names: &[&str]| TargetModules::Names(names.iter().map(|&name| name.to_owned()).collect());
        assert!(names(&["v_proj", "q_proj"]).takes(Q, false).unwrap());
        assert!(!names(&["proj", "1.self"]).takes(Q, false).unwrap(), "only whole words between dots");
        assert!(names(&["lm_head"]).takes("lm_head", true).unwrap());
        assert!(TargetModules::AllLinear.takes(Q, false).unwrap());
        assert!(!TargetModules::AllLinear.takes("lm_head", true).unwrap());
        let matching = |pattern: &str| TargetModules::Matching(pattern.to_owned()).takes(Q, false);
        assert!(matching(r".*layers\.[01]\..*(q|v)_proj").unwrap());
        assert!(!matching("q_proj").unwrap(), "the whole name");
        assert!(!matching(r"(?!.*layers\.1\.).*q_proj").unwrap());
        assert!(matches!(matching("("), Err(Error::Pattern { .. })));
    }

    #[test]
    fn patterns_override_rank_and_alpha() {
        let mut spec = LowRankSpec::new(8);
        spec.rank_pattern =
            vec![(r"layers\.1\.self_attn\.[qk]_proj".to_owned(), 4), ("q_proj".to_owned(), 2)];
        spec.alpha_pattern = vec![("down_proj".to_owned(), 24.0)];
        assert_eq!(spec.rank_and_scale(Q).unwrap(), (4, 4.0));
        assert_eq!(spec.rank_and_scale("model.layers.0.self_attn.q_proj").unwrap(), (2, 8.0));
        assert_eq!(spec.rank_and_scale("model.layers.0.mlp.down_proj").unwrap(), (8, 3.0));
        spec.use_rslora = true;
        assert_eq!(spec.rank_and_scale(Q).unwrap(), (4, 8.0));
    }

    #[test]
    fn numbers_out_of_range_are_errors() {
        let with = |change: fn(&mut LowRankSpec)| {
            let mut spec = LowRankSpec::new(8);
            change(&mut spec);
            spec.check()
        };
        assert!(with(|_| {}).is_ok());
        assert!(with(|spec| spec.r = 0).is_err());
        assert!(with(|spec| spec.rank_pattern = vec![("q_proj".to_owned(), 0)]).is_err());
        assert!(with(|spec| spec.lora_alpha = f64::NAN).is_err());
        assert!(with(|spec| spec.lora_dropout = 1.0).is_err());
        assert!(with(|spec| spec.lora_dropout = f32::NAN).is_err());
    }
}
