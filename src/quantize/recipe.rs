//! Recipes: what `--type` names. A base format plus the rules that give some tensors another one.
//!
//! Names, ids and rules are those of llama.cpp's file types (`llama_ftype`, `general.file_type`),
//! so that a plan equals `llama-quantize`'s tensor for tensor.

use super::Error;
use crate::error::nearest;
use crate::tensor::{Dtype, format};

/// What a weight does in its block, as far as recipes care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    TokenEmbedding,
    Output,
    /// `attn_v`, and the fused tensors that hold values: `attn_qkv`, `attn_kv_b`.
    AttnV,
    AttnK,
    AttnQ,
    AttnOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    Other,
}

/// Which tensors of a role a rule applies to. `layer` and `n` are the tensor's rank among, and the
/// number of, the tensors of its role (`plan.rs` defines both).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// `layer < .0`
    First(usize),
    /// `layer < n / .0`
    FirstShare(usize),
    /// `layer < n / .0`, and an importance matrix is given
    FirstShareGuided(usize),
    /// `layer < n / .0`, and no importance matrix is given
    FirstShareUnguided(usize),
    /// The first eighth, the last eighth and every third layer between.
    MoreBits,
    /// At least four query heads share a key-value head.
    WideGroups,
}

/// One row of a recipe; of the rows of a role the first that applies counts.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub role: Role,
    pub when: When,
    pub then: &'static str,
}

/// A named way to give every tensor of a model its format.
#[derive(Debug)]
pub struct Recipe {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    /// `general.file_type`.
    pub file_type: u32,
    /// Format of every tensor that no rule names.
    pub base: &'static str,
    /// Format of tensors that are not stacks of experts, where it is not `base`.
    pub dense: Option<&'static str>,
    pub rules: &'static [Rule],
    /// Format of `attn_output` in models of exactly eight experts, where it is not `base`.
    pub attn_output_of_8_experts: Option<&'static str>,
    /// True if `base` is so coarse here that weights without importance come out as noise.
    pub needs_importance: bool,
    /// One line for `--help`.
    pub about: &'static str,
}

const fn rule(role: Role, when: When, then: &'static str) -> Rule {
    Rule { role, when, then }
}

const fn plain(name: &'static str, file_type: u32, about: &'static str) -> Recipe {
    Recipe {
        name,
        aliases: &[],
        file_type,
        base: name,
        dense: None,
        rules: &[],
        attn_output_of_8_experts: None,
        needs_importance: false,
        about,
    }
}

use Role::{AttnOutput, AttnV, FfnDown};
use When::{Always, First, FirstShare, FirstShareGuided, FirstShareUnguided, MoreBits, WideGroups};

const IQ4_RULES: &[Rule] = &[rule(AttnV, WideGroups, "Q5_K"), rule(FfnDown, FirstShareUnguided(8), "Q5_K")];

/// Every recipe, in the order of `--help`.
pub static RECIPES: &[Recipe] = &[
    plain("F32", 0, "32 bits, exact"),
    plain("F16", 1, "16 bits"),
    plain("BF16", 32, "16 bits, f32's range"),
    Recipe { aliases: &["int8"], ..plain("Q8_0", 7, "8.5 bits, next to no loss") },
    plain("Q6_K", 18, "6.6 bits, very small loss"),
    Recipe {
        aliases: &["Q5_K"],
        base: "Q5_K",
        rules: &[rule(AttnV, MoreBits, "Q6_K"), rule(FfnDown, MoreBits, "Q6_K")],
        ..plain("Q5_K_M", 17, "5.7 bits, small loss")
    },
    Recipe { base: "Q5_K", ..plain("Q5_K_S", 16, "5.5 bits") },
    Recipe {
        aliases: &["int4", "Q4_K"],
        base: "Q4_K",
        rules: &[rule(AttnV, MoreBits, "Q6_K"), rule(FfnDown, MoreBits, "Q6_K")],
        attn_output_of_8_experts: Some("Q5_K"),
        ..plain("Q4_K_M", 15, "4.8 bits, the usual choice")
    },
    Recipe {
        base: "Q4_K",
        rules: &[rule(AttnV, First(4), "Q5_K"), rule(FfnDown, FirstShare(8), "Q5_K")],
        attn_output_of_8_experts: Some("Q5_K"),
        ..plain("Q4_K_S", 14, "4.6 bits")
    },
    Recipe {
        rules: IQ4_RULES,
        attn_output_of_8_experts: Some("Q5_K"),
        ..plain("IQ4_NL", 25, "4.5 bits, non-linear levels, blocks of 32")
    },
    Recipe {
        rules: IQ4_RULES,
        attn_output_of_8_experts: Some("Q5_K"),
        ..plain("IQ4_XS", 30, "4.25 bits, non-linear levels")
    },
    Recipe {
        base: "Q3_K",
        rules: &[
            rule(AttnV, Always, "Q5_K"),
            rule(FfnDown, Always, "Q5_K"),
            rule(AttnOutput, Always, "Q5_K"),
        ],
        ..plain("Q3_K_L", 13, "4.2 bits")
    },
    Recipe {
        aliases: &["Q3_K"],
        base: "Q3_K",
        rules: &[
            rule(AttnV, First(2), "Q5_K"),
            rule(AttnV, Always, "Q4_K"),
            rule(FfnDown, FirstShare(16), "Q5_K"),
            rule(FfnDown, Always, "Q4_K"),
            rule(AttnOutput, Always, "Q4_K"),
        ],
        attn_output_of_8_experts: Some("Q5_K"),
        ..plain("Q3_K_M", 12, "3.9 bits, plain loss")
    },
    Recipe { base: "Q3_K", attn_output_of_8_experts: Some("Q5_K"), ..plain("Q3_K_S", 11, "3.5 bits") },
    Recipe {
        rules: &[
            rule(AttnV, WideGroups, "Q4_K"),
            rule(AttnV, Always, "Q3_K"),
            rule(FfnDown, Always, "Q3_K"),
            rule(AttnOutput, Always, "Q3_K"),
        ],
        attn_output_of_8_experts: Some("Q5_K"),
        ..plain("Q2_K", 10, "3.2 bits, heavy loss")
    },
    Recipe {
        base: "Q2_K",
        rules: &[rule(AttnV, WideGroups, "Q4_K"), rule(FfnDown, FirstShare(8), "Q4_K")],
        needs_importance: true,
        ..plain("Q2_K_S", 21, "2.8 bits, needs --imatrix")
    },
    Recipe {
        base: "MXFP4",
        dense: Some("Q8_0"),
        ..plain("MXFP4_MOE", 38, "4.25 bits for stacked experts, Q8_0 for the rest")
    },
    Recipe {
        rules: &[rule(FfnDown, FirstShareGuided(8), "Q5_1")],
        ..plain("Q5_0", 8, "5.5 bits, legacy blocks of 32")
    },
    plain("Q5_1", 9, "6 bits, legacy blocks of 32"),
    Recipe {
        rules: &[rule(FfnDown, FirstShareGuided(8), "Q4_1")],
        ..plain("Q4_0", 2, "4.5 bits, legacy blocks of 32, fast everywhere")
    },
    plain("Q4_1", 3, "5 bits, legacy blocks of 32"),
];

/// Returns the type of as many bits as a name that other programs use.
fn meant(name: &str) -> Option<&'static str> {
    const OTHERS: [(&str, &[&str]); 8] = [
        ("Q2_K", &["int2", "2bit", "2-bit", "q2"]),
        ("Q3_K_M", &["int3", "3bit", "3-bit", "q3"]),
        ("Q4_K_M", &["4bit", "4-bit", "q4", "nf4", "fp4", "awq", "gptq", "w4a16"]),
        ("Q5_K_M", &["int5", "5bit", "5-bit", "q5"]),
        ("Q6_K", &["int6", "6bit", "6-bit", "q6"]),
        ("Q8_0", &["8bit", "8-bit", "q8", "fp8", "f8", "w8a8"]),
        ("F16", &["fp16", "float16", "half", "int16", "16bit", "16-bit"]),
        ("F32", &["fp32", "float32", "float", "32bit"]),
    ];
    let given = name.to_ascii_lowercase();
    OTHERS.iter().find(|(_, names)| names.contains(&given.as_str())).map(|(meant, _)| *meant)
}

impl Recipe {
    /// Returns the recipe of that name or alias, case ignored.
    pub fn by_name(name: &str) -> Result<&'static Recipe, Error> {
        let matches = |known: &str| known.eq_ignore_ascii_case(name);
        RECIPES.iter().find(|r| matches(r.name) || r.aliases.iter().any(|a| matches(a))).ok_or_else(|| {
            let near = meant(name).or_else(|| nearest(name, Recipe::names()));
            Error::UnknownRecipe { name: name.to_owned(), nearest: near }
        })
    }

    /// Returns every name and alias, in the order of [`RECIPES`].
    pub fn names() -> impl Iterator<Item = &'static str> {
        RECIPES.iter().flat_map(|r| std::iter::once(r.name).chain(r.aliases.iter().copied()))
    }

    /// Returns the base format.
    pub fn base(&self) -> Dtype {
        known(self.base)
    }

    /// Returns true if the recipe stores plain floats, to which no rule applies.
    pub fn is_float(&self) -> bool {
        self.base().block_len() == 1
    }
}

/// Returns the format of a name written in this module.
///
/// # Panics
/// If the registry lacks it; `every_format_named_here_exists` shows that it does not.
pub(super) fn known(name: &str) -> Dtype {
    format::by_name(name).unwrap_or_else(|| panic!("format {name} is not in the registry"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_named_here_exists() {
        for recipe in RECIPES {
            let rules = recipe.rules.iter().map(|r| r.then);
            let names = rules.chain(recipe.dense).chain(recipe.attn_output_of_8_experts).chain([recipe.base]);
            for name in names {
                assert!(known(name).can_encode(), "{name} of {}", recipe.name);
            }
        }
    }

    #[test]
    fn names_and_file_types_are_unique() {
        let mut names: Vec<_> = Recipe::names().map(str::to_lowercase).collect();
        let mut ids: Vec<_> = RECIPES.iter().map(|r| r.file_type).collect();
        let (n_names, n_ids) = (names.len(), ids.len());
        names.sort();
        names.dedup();
        ids.sort();
        ids.dedup();
        assert_eq!((names.len(), ids.len()), (n_names, n_ids));
    }

    #[test]
    fn aliases_are_the_recipes_they_promise() {
        for (alias, name) in
            [("int8", "Q8_0"), ("INT4", "Q4_K_M"), ("q3_k", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")]
        {
            assert_eq!(Recipe::by_name(alias).unwrap().name, name);
        }
    }

    #[test]
    fn a_slip_gets_the_nearest_name() {
        for (given, wanted) in [("int3", "Q3_K_M"), ("FP16", "F16"), ("awq", "Q4_K_M"), ("8bit", "Q8_0")] {
            let error = Recipe::by_name(given).unwrap_err();
            assert!(
                matches!(&error, Error::UnknownRecipe { nearest: Some(near), .. } if *near == wanted),
                "{error:?}"
            );
            assert!(Recipe::by_name(wanted).is_ok());
        }
        let error = Recipe::by_name("Q4KM").unwrap_err();
        assert!(matches!(error, Error::UnknownRecipe { nearest: Some("Q4_K_M"), .. }), "{error:?}");
    }
}
