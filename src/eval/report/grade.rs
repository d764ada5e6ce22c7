//! Right or wrong: what a document's score says.

use serde::Serialize;

use crate::eval::gate::{Figure, SampleRun, TaskRun, figure};

/// What a document came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// The best score there is.
    Right,
    /// The worst.
    Wrong,
    /// Between them.
    Partly,
    /// The model could not be asked.
    Error,
    /// The task has no score that is right or wrong.
    Unscored,
}

/// How two models' answers to a document compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The candidate's score is worse.
    Lost,
    Gained,
    /// Equal scores, but another answer.
    Differs,
    Same,
}

/// The score by which a task's documents are graded.
pub struct Lens {
    figure: Option<Figure>,
    is_bounded: bool,
}

impl Lens {
    /// Returns that of the figure `metric`, or of the first figure with a score per document.
    pub fn of(task: &TaskRun, metric: Option<&str>) -> Lens {
        // a policy's metric that no score has was refused before
        let figure = figure(task, metric).ok().flatten();
        let is_bounded = match &figure {
            Some(Figure::Mean { metric, .. }) => {
                let in_range = |sample: &SampleRun| (0.0..=1.0).contains(&sample.scores[metric]);
                task.samples.iter().all(in_range)
            }
            _ => false,
        };
        Lens { figure, is_bounded }
    }

    /// Returns the figure's name.
    pub fn metric(&self) -> Option<&str> {
        self.figure.as_ref().map(Figure::name)
    }

    pub fn grade(&self, sample: &SampleRun) -> Grade {
        if sample.error.is_some() {
            return Grade::Error;
        }
        let Some(Figure::Mean { metric, higher_is_better }) = &self.figure else { return Grade::Unscored };
        let Some(score) = sample.scores.get(metric) else { return Grade::Unscored };
        let (best, worst) = if *higher_is_better { (1.0, 0.0) } else { (0.0, 1.0) };
        match self.is_bounded {
            true if *score == best => Grade::Right,
            true if *score == worst => Grade::Wrong,
            true => Grade::Partly,
            // a deviation: none is right, and there is no worst
            false if !higher_is_better && *score == 0.0 => Grade::Right,
            false if !higher_is_better => Grade::Partly,
            false => Grade::Unscored,
        }
    }

    /// Returns how a document's answers compare.
    pub fn change(&self, baseline: &SampleRun, candidate: &SampleRun) -> Change {
        let delta = match &self.figure {
            Some(Figure::Mean { metric, higher_is_better }) => {
                let score = |sample: &SampleRun| sample.scores.get(metric).copied().unwrap_or(0.0);
                let delta = score(candidate) - score(baseline);
                if *higher_is_better { delta } else { -delta }
            }
            Some(Figure::BitsPerByte) => {
                let log_prob = |sample: &SampleRun| sample.scores.get("log_prob").copied().unwrap_or(0.0);
                log_prob(candidate) - log_prob(baseline)
            }
            None => 0.0,
        };
        let answer = |sample: &SampleRun| {
            (sample.prediction.clone(), sample.details.get("text").cloned(), sample.error.clone())
        };
        match delta {
            ..0.0 => Change::Lost,
            delta if delta > 0.0 => Change::Gained,
            _ if answer(baseline) != answer(candidate) => Change::Differs,
            _ => Change::Same,
        }
    }
}
