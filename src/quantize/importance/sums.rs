//! What importance matrices are made of: sums over the inputs of products, collected from a model or read from files.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::{ImportanceError, ParsedEntry, check_counts, parse};
use crate::model::observe::{SiteSums, SiteTensors};

/// Per tensor and input column, the sums of the inputs and of their squares, and how many rows they are of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportanceSums {
    pub(super) entries: BTreeMap<String, Sums>,
    pub(super) datasets: Vec<String>,
    /// Tokens per chunk.
    pub(super) chunk_len: usize,
    /// GPUs that computed some of them, with their precision, each once.
    pub(super) devices: Vec<String>,
}

/// Of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sums {
    /// `[experts, columns]`
    pub squares: Vec<f64>,
    /// Of the inputs themselves; a legacy file lacks them, and so does what such a file was added to.
    pub values: Option<Vec<f64>>,
    /// Rows of each expert.
    pub counts: Vec<u64>,
}

impl ImportanceSums {
    /// Returns what a model's sums over a text of that name come to, computed in chunks of that length, on a GPU if one is named.
    pub fn of_sites(sites: Vec<SiteSums>, dataset: String, chunk_len: usize, device: Option<String>) -> Self {
        let mut entries = BTreeMap::new();
        for SiteSums { tensors, squares, values, counts } in sites {
            let sums = Sums { squares, values: Some(values), counts };
            entries.extend(tensors.names.into_iter().map(|name| (name, sums.clone())));
        }
        ImportanceSums { entries, datasets: vec![dataset], chunk_len, devices: device.into_iter().collect() }
    }

    /// Returns the sums in a file of either form. `chunk_len` is for a file that does not say how many tokens its chunks have:
    /// a legacy one holds means, of which that makes sums.
    ///
    /// Errors if it is none, or a sum is no number.
    pub fn open(path: &Path, chunk_len: usize) -> Result<Self, ImportanceError> {
        let parsed = parse(path, true)?;
        let chunk_len = parsed.chunk_len.map_or(chunk_len, |n| n as usize).max(1);
        let mut entries = BTreeMap::new();
        for entry in parsed.entries {
            let name = entry.name.clone();
            let sums = Sums::checked(path, entry, if parsed.is_legacy { chunk_len as f64 } else { 1.0 })?;
            if entries.insert(name.clone(), sums).is_some() {
                return Err(ImportanceError::Duplicate { path: path.into(), entry: name });
            }
        }
        Ok(ImportanceSums { entries, datasets: parsed.datasets, chunk_len, devices: parsed.devices })
    }

    /// Returns the tokens per chunk of the legacy ones among files, which do not say: as many as the others say, or `otherwise` if
    /// none does.
    ///
    /// Errors if the others disagree, or one of them is no importance matrix.
    pub fn legacy_chunk_len(paths: &[&Path], otherwise: usize) -> Result<usize, ImportanceError> {
        let mut legacy = None;
        let mut stated: Vec<u32> = Vec::new();
        for path in paths {
            let parsed = parse(path, false)?;
            if parsed.is_legacy {
                legacy = legacy.or(Some(*path));
            }
            stated.extend(parsed.chunk_len.filter(|_| !parsed.is_legacy));
        }
        stated.sort_unstable();
        stated.dedup();
        match (legacy, stated.as_slice()) {
            (None, _) | (_, []) => Ok(otherwise),
            (_, [one]) => Ok(*one as usize),
            (Some(path), [first, .., last]) => {
                Err(ImportanceError::ChunkLengths { path: path.into(), least: *first, most: *last })
            }
        }
    }

    /// Adds those of `other`, which `path` named. The chunks' length stays, unless there was nothing yet.
    ///
    /// Errors if a tensor has another length there.
    pub fn add(&mut self, other: ImportanceSums, path: &Path) -> Result<(), ImportanceError> {
        if self.entries.is_empty() {
            self.chunk_len = other.chunk_len;
        }
        self.datasets.extend(other.datasets);
        for device in other.devices {
            if !self.devices.contains(&device) {
                self.devices.push(device);
            }
        }
        for (name, sums) in other.entries {
            match self.entries.get_mut(&name) {
                None => {
                    self.entries.insert(name, sums);
                }
                Some(so_far) if so_far.fits(&sums) => so_far.add(sums),
                Some(so_far) => {
                    let (n_expected, n_parts) = (so_far.squares.len(), so_far.counts.len());
                    return Err(sums.of_another(path, name, n_expected, n_parts));
                }
            }
        }
        Ok(())
    }

    /// Errors if one of these, which `path` named, is of no tensor of the model, or of one with other columns.
    pub fn check(&self, path: &Path, sites: &[SiteTensors]) -> Result<(), ImportanceError> {
        let tensors = sites.iter().flat_map(|site| site.names.iter().map(move |name| (name.as_str(), site)));
        let tensors: HashMap<&str, &SiteTensors> = tensors.collect();
        for (name, sums) in &self.entries {
            let Some(site) = tensors.get(name.as_str()) else {
                return Err(ImportanceError::NoSuchTensor { path: path.into(), entry: name.clone() });
            };
            let n_expected = site.columns * site.n_experts;
            if sums.squares.len() != n_expected || ![1, site.n_experts].contains(&sums.counts.len()) {
                return Err(sums.of_another(path, name.clone(), n_expected, site.n_experts));
            }
        }
        Ok(())
    }

    /// Returns the number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the names of the texts, in the order in which they were added.
    pub fn datasets(&self) -> &[String] {
        &self.datasets
    }

    /// Returns the GPUs that computed some of the sums, with their precision; a legacy file does not say.
    pub fn devices(&self) -> &[String] {
        &self.devices
    }

    /// Returns the tokens per chunk.
    pub fn chunk_len(&self) -> usize {
        self.chunk_len
    }

    /// Returns how many chunks the tensor with the most rows has seen.
    pub fn n_chunks(&self) -> u64 {
        let most = self.entries.values().flat_map(|sums| sums.counts.iter().copied()).max().unwrap_or(0);
        let chunk_len = self.chunk_len.max(1) as u64;
        most.saturating_add(chunk_len / 2) / chunk_len
    }

    /// Returns the tensors some of whose experts have seen no row, and how many those are.
    pub fn with_idle_experts(&self) -> impl Iterator<Item = (&str, usize)> {
        self.entries.iter().filter_map(|(name, sums)| {
            let idle = sums.counts.iter().filter(|count| **count == 0).count();
            (idle > 0).then_some((name.as_str(), idle))
        })
    }
}

impl Sums {
    /// Returns what a file holds of a tensor, times `factor`.
    fn checked(path: &Path, entry: ParsedEntry, factor: f64) -> Result<Sums, ImportanceError> {
        let ParsedEntry { name, squares, values, counts } = entry;
        check_counts(path, &name, squares.len(), &counts)?;
        let bad = |what, values: &[f32], column: usize| ImportanceError::BadValue {
            path: path.into(),
            entry: name.clone(),
            what,
            value: values[column],
            column,
        };
        if let Some(column) = squares.iter().position(|sum| !(sum.is_finite() && *sum >= 0.0)) {
            return Err(bad("sum of squares", &squares, column));
        }
        if let Some(n_values) = values.as_ref().map(Vec::len).filter(|n| *n != squares.len()) {
            let (n_expected, n_parts) = (squares.len(), counts.len());
            let (path, n_counts) = (path.into(), n_parts);
            return Err(ImportanceError::OfAnother {
                path,
                entry: name,
                n_values,
                n_counts,
                n_expected,
                n_parts,
            });
        }
        if let Some(values) = &values
            && let Some(column) = values.iter().position(|sum| !sum.is_finite())
        {
            return Err(bad("sum", values, column));
        }
        let times = |sums: Vec<f32>| sums.into_iter().map(|sum| f64::from(sum) * factor).collect();
        Ok(Sums {
            squares: times(squares),
            values: values.map(times),
            // counts are whole, and far below 2^53
            counts: counts.iter().map(|count| (f64::from(*count).round() * factor) as u64).collect(),
        })
    }

    /// Returns true if the other can be added: as many sums, in as many parts, or in one.
    fn fits(&self, other: &Sums) -> bool {
        let (a, b) = (self.counts.len(), other.counts.len());
        self.squares.len() == other.squares.len() && (a == b || a == 1 || b == 1)
    }

    /// Adds one that fits. A single count stands for every expert.
    fn add(&mut self, other: Sums) {
        let spread = |counts: Vec<u64>, n: usize| match counts.as_slice() {
            [one] => vec![*one; n],
            _ => counts,
        };
        let n = self.counts.len().max(other.counts.len());
        self.counts = spread(std::mem::take(&mut self.counts), n);
        let pairs = self.counts.iter_mut().zip(spread(other.counts, n));
        pairs.for_each(|(count, more)| *count = count.saturating_add(more));
        let add = |sums: &mut Vec<f64>, more: Vec<f64>| {
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        };
        add(&mut self.squares, other.squares);
        self.values = self.values.take().zip(other.values).map(|(mut values, more)| {
            add(&mut values, more);
            values
        });
    }

    fn of_another(&self, path: &Path, entry: String, n_expected: usize, n_parts: usize) -> ImportanceError {
        let (n_values, n_counts) = (self.squares.len(), self.counts.len());
        ImportanceError::OfAnother { path: path.into(), entry, n_values, n_counts, n_expected, n_parts }
    }
}
