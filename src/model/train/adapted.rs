//! The decoder with the values that training has reached.

use std::sync::Arc;

use super::Error;
use super::dora;
use super::feed_forward::{FeedForward, Mlp};
use super::linear::{Adapter, Group, Part};
use super::pass::{Norm, Pass};
use super::plan::Plan;
use crate::kernel::Matrix;
use crate::kernel::product::Values;
use crate::model::adapter::LowRank;
use crate::model::weights::{self, Linear, Vector, Weights};

/// Puts trained values into weights.
pub(super) struct Putter<'a> {
    pub pass: &'a Pass<'a>,
    /// The parameters.
    pub values: Arc<Values>,
}

impl Putter<'_> {
    /// Puts all of a plan's values into the weights they belong to.
    pub fn put(&self, plan: &Plan, weights: &mut Weights) -> Result<(), Error> {
        if let Some(range) = &plan.embedding.range {
            weights.token_embedding = self.matrix(range.start, &plan.embedding.base);
        }
        self.part(&plan.output, &mut weights.output);
        self.norm(&plan.output_norm, &mut weights.output_norm);
        for (block, layer) in plan.blocks.iter().zip(&mut weights.layers) {
            self.norm(&block.attn_norm, &mut layer.attn_norm);
            self.norm(&block.ffn_norm, &mut layer.ffn_norm);
            for (norm, weight) in [
                (&block.q_norm, &mut layer.q_norm),
                (&block.k_norm, &mut layer.k_norm),
                (&block.post_attn_norm, &mut layer.post_attn_norm),
                (&block.post_ffn_norm, &mut layer.post_ffn_norm),
            ] {
                if let (Some(norm), Some(weight)) = (norm, weight) {
                    self.norm(norm, weight);
                }
            }
            self.group(&block.qkv, vec![&mut layer.q, &mut layer.k, &mut layer.v])?;
            self.group(&block.o, vec![&mut layer.o])?;
            match (&block.ffn, &mut layer.ffn) {
                (FeedForward::Dense(from), weights::FeedForward::Dense(to)) => self.mlp(from, to)?,
                (
                    FeedForward::Experts { router: from_router, experts: from },
                    weights::FeedForward::Experts { router, experts },
                ) => {
                    self.group(from_router, vec![router])?;
                    from.iter().zip(experts).try_for_each(|(from, to)| self.mlp(from, to))?;
                }
                // a plan is made of these weights
                _ => {}
            }
        }
        Ok(())
    }

    fn mlp(&self, from: &Mlp, to: &mut weights::Mlp) -> Result<(), Error> {
        self.group(&from.gate_up, vec![&mut to.gate, &mut to.up])?;
        self.group(&from.down, vec![&mut to.down])
    }

    fn norm(&self, from: &Norm, to: &mut Vector) {
        *to = from.weight(self.pass);
    }

    fn matrix(&self, start: usize, like: &Matrix) -> Matrix {
        Matrix::of_values(self.values.clone(), start, like.rows(), like.cols())
    }

    fn part(&self, from: &Part, to: &mut Linear) {
        if let Some(range) = &from.weight {
            to.weight = self.matrix(range.start, &from.base.weight);
        }
        to.bias = from.bias(self.pass);
    }

    fn group(&self, group: &Group, mut to: Vec<&mut Linear>) -> Result<(), Error> {
        for (part, linear) in group.parts.iter().zip(&mut to) {
            self.part(part, linear);
        }
        for adapter in &group.adapters {
            self.pair(adapter, &group.parts, &mut to[adapter.parts.clone()])?;
        }
        Ok(())
    }

    fn pair(&self, adapter: &Adapter, all: &[Part], linears: &mut [&mut Linear]) -> Result<(), Error> {
        let gains = adapter.magnitude.as_ref().map(|_| dora::gains(self.pass, adapter, all)).transpose()?;
        let mut first = 0;
        for (range, linear) in adapter.b_ranges(all).into_iter().zip(linears) {
            let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
            let a = Matrix::of_values(self.values.clone(), adapter.a.start, adapter.rank, cols);
            let b = Matrix::of_values(self.values.clone(), range.start, rows, adapter.rank);
            let own = gains.as_ref().map(|gains| gains[first..first + rows].into());
            linear.low_rank = Some(Arc::new(LowRank::new(a, b, adapter.scale, own)));
            first += rows;
        }
        Ok(())
    }
}
