//! Sums of what goes into the products, on the device: `model::observe`.

use std::cell::RefCell;
use std::collections::HashMap;

use super::rows::Rows;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::moments::{Moments, Summed};
use crate::cuda::{CudaError, Device};
use crate::model::observe::{Input, NotFinite, Site, SiteSums, SiteTensors};

/// Running sums over all forwards: the CPU's bits, on the same inputs.
pub struct DeviceSums {
    /// Of all sites, one behind another.
    moments: Moments,
    kept: Vec<Kept>,
    /// Places in `kept`.
    of_site: HashMap<Site, usize>,
}

/// Of one site.
struct Kept {
    tensors: SiteTensors,
    /// Where its sums begin.
    first: usize,
    /// Rows of each expert.
    counts: Vec<u64>,
}

/// Returns the bytes that sums at these sites take on a device.
pub fn sums_bytes(sites: &[SiteTensors]) -> u64 {
    Moments::bytes(sites.iter().map(n_sums).sum()) as u64
}

fn n_sums(tensors: &SiteTensors) -> usize {
    tensors.columns * tensors.n_experts
}

impl DeviceSums {
    /// Returns sums of nothing at these sites, which see no others.
    pub(super) fn new(device: &Device, sites: Vec<SiteTensors>) -> Result<DeviceSums, CudaError> {
        let mut end = 0;
        let mut kept = Vec::with_capacity(sites.len());
        for tensors in sites {
            let (first, counts) = (end, vec![0; tensors.n_experts]);
            end += n_sums(&tensors);
            kept.push(Kept { tensors, first, counts });
        }
        let of_site = kept.iter().enumerate().map(|(at, kept)| (kept.tensors.site, at)).collect();
        Ok(DeviceSums { moments: Moments::zeros(device, end)?, kept, of_site })
    }

    /// Adds what an expert takes of the rows `ids`; without ids it is all rows.
    fn add<T: Float>(
        &mut self,
        device: &Device,
        site: Site,
        (expert, ids): (usize, Option<&Buffer<u32>>),
        x: &Rows<T>,
    ) -> Result<(), CudaError> {
        let Some(kept) = self.of_site.get(&site).map(|at| &mut self.kept[*at]) else { return Ok(()) };
        let columns = kept.tensors.columns;
        assert_eq!(x.cols(), columns);
        kept.counts[expert] += x.n() as u64;
        // the zeros that fill up the last chunk are no rows
        self.moments.add(device, (kept.first + expert * columns, columns), &x.all(), ids)
    }

    /// Returns the inputs that add up to no finite f32, the first in the order in which they were computed; waits for what was added.
    pub(super) fn refused(&self, device: &Device) -> Result<Option<NotFinite>, CudaError> {
        let mut parts: Vec<(&Kept, usize)> = self
            .kept
            .iter()
            .flat_map(|kept| (0..kept.counts.len()).map(move |expert| (kept, expert)))
            .collect();
        // an expert is through before the next one begins
        parts.sort_by_key(|(kept, expert)| {
            let Site { layer, input } = kept.tensors.site;
            (layer, input.min(Input::FeedForward), *expert, input)
        });
        let begin = |(kept, expert): &(&Kept, usize)| kept.first + expert * kept.tensors.columns;
        let columns = parts.iter().flat_map(|part| begin(part)..begin(part) + part.0.tensors.columns);
        let Some((at, row, sum)) = self.moments.refused(device, columns)? else { return Ok(None) };
        let of_column =
            parts.iter().find(|part| (begin(part)..begin(part) + part.0.tensors.columns).contains(&at));
        Ok(of_column.map(|part| NotFinite {
            tensor: part.0.tensors.names.first().cloned().unwrap_or_default(),
            row,
            column: at - begin(part),
            value: sum as f32,
        }))
    }

    /// Returns the sums of every site, in the order in which they were given.
    pub(super) fn read(self, device: &Device) -> Result<Vec<SiteSums>, CudaError> {
        let Summed { values, squares } = self.moments.read(device)?;
        let of = |all: &[f64], kept: &Kept| all[kept.first..kept.first + n_sums(&kept.tensors)].to_vec();
        let sums = |kept: Kept| SiteSums {
            squares: of(&squares, &kept),
            values: of(&values, &kept),
            tensors: kept.tensors,
            counts: kept.counts,
        };
        Ok(self.kept.into_iter().map(sums).collect())
    }
}

/// The sums that a forward adds to, if there are some.
#[derive(Default)]
pub(super) struct Watch<'a>(RefCell<Option<&'a mut DeviceSums>>);

impl<'a> Watch<'a> {
    pub fn of(sums: Option<&'a mut DeviceSums>) -> Self {
        Watch(RefCell::new(sums))
    }

    /// Tells of x, `[T, columns]`, that all rows of the forward have.
    pub fn all<T: Float>(
        &self,
        device: &Device,
        layer: usize,
        input: Input,
        x: &Rows<T>,
    ) -> Result<(), CudaError> {
        self.add(device, Site { layer, input }, (0, None), x)
    }

    /// Tells of x, which an expert takes of the rows `ids`.
    pub fn part<T: Float>(
        &self,
        device: &Device,
        site: Site,
        (expert, ids): (usize, &Buffer<u32>),
        x: &Rows<T>,
    ) -> Result<(), CudaError> {
        self.add(device, site, (expert, Some(ids)), x)
    }

    fn add<T: Float>(
        &self,
        device: &Device,
        site: Site,
        of: (usize, Option<&Buffer<u32>>),
        x: &Rows<T>,
    ) -> Result<(), CudaError> {
        match &mut *self.0.borrow_mut() {
            Some(sums) => sums.add(device, site, of, x),
            None => Ok(()),
        }
    }
}
