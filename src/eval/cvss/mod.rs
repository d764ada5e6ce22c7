//! CVSS vectors and their base scores: v3.0, v3.1 and v4.0, as FIRST's specifications define them.

mod metrics;
mod v3;
mod v4;
mod v4_table;

use std::sync::LazyLock;

use regex::Regex;

use crate::error::{Diagnostic, nearest};

pub use metrics::Metric;

/// A version of CVSS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V3_0,
    V3_1,
    V4_0,
}

/// Every version by the name that vectors begin with.
pub const VERSIONS: &[(&str, Version)] =
    &[("3.0", Version::V3_0), ("3.1", Version::V3_1), ("4.0", Version::V4_0)];

impl Version {
    /// Returns `3.0`, `3.1` or `4.0`.
    pub fn name(self) -> &'static str {
        match self {
            Version::V3_0 => "3.0",
            Version::V3_1 => "3.1",
            Version::V4_0 => "4.0",
        }
    }

    /// Returns every metric, in the order of vectors.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Version::V3_0 | Version::V3_1 => metrics::V3,
            Version::V4_0 => metrics::V4,
        }
    }

    /// Returns the names of the base metrics, in the order of vectors.
    pub fn base_metrics(self) -> impl Iterator<Item = &'static str> {
        self.metrics().iter().filter(|metric| metric.is_base).map(|metric| metric.name)
    }
}

/// A complete vector: every base metric has a value, no value is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    version: Version,
    /// Per metric of the version; `None` is not defined.
    values: Vec<Option<&'static str>>,
}

/// Why a text is no vector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("`{text}` does not begin with CVSS:3.0/, CVSS:3.1/ or CVSS:4.0/")]
    NoVersion { text: String },

    #[error("`{part}` is not a metric and its value, as in AV:N")]
    NotAPair { part: String },

    #[error("CVSS {version} has no metric `{name}`")]
    UnknownMetric { version: &'static str, name: String },

    #[error("CVSS {version}: `{metric}` is not `{value}`")]
    UnknownValue { version: &'static str, metric: &'static str, value: String },

    #[error("`{metric}` is there twice")]
    Twice { metric: &'static str },

    #[error("`{metric}` stands behind `{earlier}`, but CVSS 4.0 orders its metrics")]
    OutOfOrder { metric: &'static str, earlier: &'static str },

    #[error("the base metric `{metric}` of CVSS {version} is missing")]
    Missing { version: &'static str, metric: &'static str },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::UnknownMetric { version, name } => {
                let (_, version) = VERSIONS.iter().find(|(known, _)| known == version)?;
                let names = version.metrics().iter().map(|metric| metric.name);
                nearest(name, names).map(|near| format!("did you mean `{near}`?"))
            }
            Error::UnknownValue { version, metric, .. } => {
                let (_, version) = VERSIONS.iter().find(|(known, _)| known == version)?;
                let metric = version.metrics().iter().find(|known| known.name == *metric)?;
                Some(format!("`{}` is one of: {}", metric.name, metric.values.join(", ")))
            }
            Error::NoVersion { .. } => Some("a vector looks like CVSS:3.1/AV:N/AC:L/...".into()),
            _ => None,
        }
    }
}

impl Vector {
    /// Returns the vector that the whole text is.
    ///
    /// v3 allows any order of metrics, v4.0 only its own (section 7 of its specification).
    pub fn parse(text: &str) -> Result<Vector, Error> {
        let no_version = || Error::NoVersion { text: text.to_owned() };
        let (name, rest) =
            text.strip_prefix("CVSS:").and_then(|text| text.split_once('/')).ok_or_else(no_version)?;
        let (_, version) = VERSIONS.iter().find(|(known, _)| *known == name).ok_or_else(no_version)?;
        Self::parse_bare(*version, rest)
    }

    /// Returns the vector of a text without `CVSS:` and version.
    pub fn parse_bare(version: Version, text: &str) -> Result<Vector, Error> {
        let known = version.metrics();
        let mut values = vec![None; known.len()];
        let mut last = None;
        for part in text.split('/') {
            let (name, value) =
                part.split_once(':').ok_or_else(|| Error::NotAPair { part: part.to_owned() })?;
            let unknown = || Error::UnknownMetric { version: version.name(), name: name.to_owned() };
            let index = known.iter().position(|metric| metric.name == name).ok_or_else(unknown)?;
            let metric = &known[index];
            let value = metric.values.iter().find(|known| **known == value).ok_or_else(|| {
                let (version, value) = (version.name(), value.to_owned());
                Error::UnknownValue { version, metric: metric.name, value }
            })?;
            if values[index].replace(*value).is_some() {
                return Err(Error::Twice { metric: metric.name });
            }
            if let Some(earlier) = last.replace(index).filter(|last| *last > index)
                && version == Version::V4_0
            {
                return Err(Error::OutOfOrder { metric: metric.name, earlier: known[earlier].name });
            }
        }
        for (metric, value) in known.iter().zip(&mut values) {
            if metric.is_base && value.is_none() {
                return Err(Error::Missing { version: version.name(), metric: metric.name });
            }
            *value = value.filter(|value| *value != "X");
        }
        Ok(Vector { version, values })
    }

    /// Returns the last thing in a text that looks like a vector, read as one; one without `CVSS:` is of the
    /// version `bare`, if that is given. `None` if nothing looks like a vector: several metrics with their values, of which
    /// the first is one of CVSS and one is AV, a base metric of every version.
    pub fn find_last(text: &str, bare: Option<Version>) -> Option<Result<Vector, Error>> {
        static LIKE: LazyLock<Regex> = LazyLock::new(|| {
            let names = metrics::V3.iter().chain(metrics::V4).map(|metric| metric.name);
            let first = names.collect::<Vec<_>>().join("|");
            let pattern =
                format!(r"(?:CVSS:[0-9]+\.[0-9]+/)?\b(?:{first}):[A-Za-z]+(?:/[A-Za-z]+:[A-Za-z]+)+");
            Regex::new(&pattern).expect("the pattern is made of fixed names, and a test uses it")
        });
        let has_vector = |found: &&str| found.split('/').any(|part| part.starts_with("AV:"));
        let found = LIKE.find_iter(text).map(|found| found.as_str()).filter(has_vector);
        let found = found.filter(|found| bare.is_some() || found.starts_with("CVSS:")).last()?;
        Some(match bare {
            Some(version) if !found.starts_with("CVSS:") => Self::parse_bare(version, found),
            _ => Self::parse(found),
        })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns the value of a metric; `None` if the version has no such metric or it is not defined.
    pub fn get(&self, metric: &str) -> Option<&'static str> {
        let index = self.version.metrics().iter().position(|known| known.name == metric)?;
        self.values[index]
    }

    /// Returns the value of a base metric.
    fn base(&self, metric: &'static str) -> &'static str {
        self.get(metric).expect("parsing refuses a vector without all base metrics")
    }

    /// Returns the base score, 0.0 to 10.0 in steps of 0.1: optional metrics do not count.
    pub fn base_score(&self) -> f64 {
        match self.version {
            Version::V3_0 | Version::V3_1 => v3::base_score(self),
            Version::V4_0 => v4::score(|metric| self.get(metric).filter(|_| self.is_base(metric))),
        }
    }

    /// Returns the score over base, threat and environmental metrics (CVSS-BTE) of a v4.0 vector; `None` for
    /// v3, whose temporal and environmental scores have equations of their own.
    pub fn full_score(&self) -> Option<f64> {
        (self.version == Version::V4_0).then(|| v4::score(|metric| self.get(metric)))
    }

    fn is_base(&self, name: &str) -> bool {
        self.version.base_metrics().any(|metric| metric == name)
    }
}

impl std::fmt::Display for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CVSS:{}", self.version.name())?;
        for (metric, value) in self.version.metrics().iter().zip(&self.values) {
            if let Some(value) = value {
                write!(f, "/{}:{value}", metric.name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
