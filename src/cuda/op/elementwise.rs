//! Steps that treat every value alone: `kernel::activation`, `kernel::rope`, `kernel::dropout`, and rows by index.

use std::marker::PhantomData;
use std::ops::{Deref, Range};

use half::bf16;

use super::super::CudaError;
use super::super::buffer::{Buffer, Float, optional};
use super::super::device::Device;
use super::super::launch::{Arg, Launch};
use super::{THREADS, arg, blocks, over_rows, over_values, pair_name};
use crate::nn::{Activation, RowPlace};

/// Writes `x + factor * y` to out, product and sum each rounded to f32; y may be bf16 where the others are f32.
///
/// # Panics
/// If the lengths disagree (as all functions here), or x is bf16 and y is not.
pub fn add_scaled<X: Float, T: Float>(
    device: &Device,
    x: &Buffer<X>,
    y: &Buffer<T>,
    factor: f32,
    out: &mut Buffer<X>,
) -> Result<(), CudaError> {
    let n = x.len();
    assert!(y.len() == n && out.len() == n);
    let args = [x.arg(), y.arg(), Arg::F32(factor), out.arg(), Arg::U64(n as u64)];
    // SAFETY: the lengths were checked.
    unsafe { over_values(device, &format!("add_scaled_{}", pair_name::<X, T>()), n, 8, &args) }
}

/// Replaces x by `x + factor * y`, as [`add_scaled`].
pub fn add_to<X: Float, T: Float>(
    device: &Device,
    x: &mut Buffer<X>,
    y: &Buffer<T>,
    factor: f32,
) -> Result<(), CudaError> {
    let n = x.len();
    assert_eq!(y.len(), n);
    let args = [x.arg(), y.arg(), Arg::F32(factor), x.arg(), Arg::U64(n as u64)];
    // SAFETY: the lengths were checked; a thread writes what it alone read.
    unsafe { over_values(device, &format!("add_scaled_{}", pair_name::<X, T>()), n, 8, &args) }
}

/// Writes `factor * x` to out.
pub fn scale<T: Float>(
    device: &Device,
    x: &Buffer<T>,
    factor: f32,
    out: &mut Buffer<T>,
) -> Result<(), CudaError> {
    let n = x.len();
    assert_eq!(out.len(), n);
    let args = [x.arg(), Arg::F32(factor), out.arg(), Arg::U64(n as u64)];
    // SAFETY: the lengths were checked.
    unsafe { over_values(device, &format!("scale_{}", T::NAME), n, 8, &args) }
}

/// Adds the same bias to every row of x.
pub fn add_bias<T: Float>(device: &Device, x: &mut Buffer<T>, bias: &Buffer<f32>) -> Result<(), CudaError> {
    let cols = bias.len();
    assert!(cols > 0 && x.len().is_multiple_of(cols));
    let rows = x.len() / cols;
    let args = [x.arg(), bias.arg(), arg(rows), arg(cols)];
    // SAFETY: the lengths were checked.
    unsafe { over_rows(device, &format!("add_bias_{}", T::NAME), rows, &args) }
}

/// Rounds x to bf16.
pub fn to_bf16(device: &Device, x: &Buffer<f32>, y: &mut Buffer<bf16>) -> Result<(), CudaError> {
    assert_eq!(x.len(), y.len());
    let args = [x.arg(), y.arg(), Arg::U64(x.len() as u64)];
    // SAFETY: the lengths were checked.
    unsafe { over_values(device, "cast_f32_bf16", x.len(), 8, &args) }
}

/// Widens x.
pub fn to_f32(device: &Device, x: &Buffer<bf16>, y: &mut Buffer<f32>) -> Result<(), CudaError> {
    assert_eq!(x.len(), y.len());
    let args = [x.arg(), y.arg(), Arg::U64(x.len() as u64)];
    // SAFETY: the lengths were checked.
    unsafe { over_values(device, "cast_bf16_f32", x.len(), 8, &args) }
}

/// Gate and up of a feed-forward, `[rows, cols]` each: in matrices of their own, or side by side in one.
#[derive(Clone, Copy)]
pub enum GateUp<'a, T> {
    Apart(&'a Buffer<T>, &'a Buffer<T>),
    /// `[rows, 2 cols]`, gate first.
    Fused(&'a Buffer<T>),
}

impl<T: Float> GateUp<'_, T> {
    /// Returns both arguments and the values from row to row.
    fn args(&self, rows: usize, cols: usize) -> (Arg, Arg, usize) {
        match self {
            GateUp::Apart(gate, up) => {
                assert!(gate.len() == rows * cols && up.len() == rows * cols);
                (gate.arg(), up.arg(), cols)
            }
            GateUp::Fused(both) => {
                assert_eq!(both.len(), 2 * rows * cols);
                (both.arg(), Arg::Pointer(both.address_of(cols.min(both.len()))), 2 * cols)
            }
        }
    }
}

fn gate_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "swiglu",
        Activation::GeluTanh => "geglu",
    }
}

/// Launches a kernel over runs within rows.
unsafe fn over_gates(
    device: &Device,
    kernel: &str,
    rows: usize,
    cols: usize,
    args: &[Arg],
) -> Result<(), CudaError> {
    // eight values a thread at most, so one block spans 2048 of a row
    let grid = (blocks(cols.div_ceil(8 * THREADS as usize)), blocks(rows.min(65_535)));
    // SAFETY: the caller's.
    unsafe { device.launch(&Launch { kernel, grid, threads: THREADS, shared: 0, args }) }
}

/// Writes `activation(gate) * up` to y, `[rows, cols]`.
pub fn gated<T: Float>(
    device: &Device,
    activation: Activation,
    input: GateUp<'_, T>,
    cols: usize,
    y: &mut Buffer<T>,
) -> Result<(), CudaError> {
    assert!(cols > 0 && y.len().is_multiple_of(cols));
    let rows = y.len() / cols;
    let (gate, up, stride) = input.args(rows, cols);
    let kernel = format!("{}_{}", gate_name(activation), T::NAME);
    let args = [gate, up, y.arg(), arg(rows), arg(cols), arg(stride)];
    // SAFETY: the lengths were checked.
    unsafe { over_gates(device, &kernel, rows, cols, &args) }
}

/// Writes the gradients of gate and up, given that of [`gated`]'s result, to a buffer of the input's layout; and with `y` the
/// forward's result once more.
///
/// # Panics
/// If the input and the gradients are not both fused.
pub fn gated_backward<T: Float>(
    device: &Device,
    activation: Activation,
    input: GateUp<'_, T>,
    dy: &Buffer<T>,
    gradients: (&mut Buffer<T>, Option<&mut Buffer<T>>),
    cols: usize,
    y: Option<&mut Buffer<T>>,
) -> Result<(), CudaError> {
    assert!(cols > 0 && dy.len().is_multiple_of(cols));
    let rows = dy.len() / cols;
    let (gate, up, stride) = input.args(rows, cols);
    let (dgate, dup) = match (gradients, input) {
        ((both, None), GateUp::Fused(_)) => {
            assert_eq!(both.len(), 2 * dy.len());
            (both.arg(), Arg::Pointer(both.address_of(cols.min(both.len()))))
        }
        ((dgate, Some(dup)), GateUp::Apart(..)) => {
            assert!(dgate.len() == dy.len() && dup.len() == dy.len());
            (dgate.arg(), dup.arg())
        }
        _ => panic!("gradients of another layout than the input's"),
    };
    assert!(y.as_ref().is_none_or(|y| y.len() == dy.len()));
    let kernel = format!("{}_backward_{}", gate_name(activation), T::NAME);
    let args = [gate, up, dy.arg(), dgate, dup, optional(y.as_deref()), arg(rows), arg(cols), arg(stride)];
    // SAFETY: the lengths were checked.
    unsafe { over_gates(device, &kernel, rows, cols, &args) }
}

/// Cosines and sines by position, as `kernel::rope::RopeTable` has them.
pub struct RopeRows<'a> {
    /// Per position the cosines of all frequencies, then the sines.
    pub table: &'a Buffer<f32>,
    /// Values of a head that turn: two per frequency.
    pub dim: usize,
    /// One per row.
    pub positions: &'a Buffer<u32>,
}

/// Which way heads turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Forward,
    /// That of the gradient.
    Back,
}

/// Turns the first `n_heads` heads of every row of x in place; rows are `stride` values apart.
///
/// # Panics
/// Also if a position is beyond the table: the host must have made sure that none is.
pub fn rope<T: Float>(
    device: &Device,
    x: &mut Buffer<T>,
    (stride, n_heads, head_dim): (usize, usize, usize),
    rows: &RopeRows<'_>,
    turn: Turn,
) -> Result<(), CudaError> {
    let n = rows.positions.len();
    assert!(x.len() == n * stride && n_heads * head_dim <= stride && rows.dim <= head_dim);
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    let args = [
        x.arg(),
        arg(stride),
        arg(n_heads),
        arg(head_dim),
        arg(rows.dim / 2),
        rows.positions.arg(),
        rows.table.arg(),
        Arg::F32(sign),
    ];
    // SAFETY: the lengths were checked; positions are the caller's.
    unsafe { over_rows(device, &format!("rope_{}", T::NAME), n, &args) }
}

/// Writes `scale * from[ids[r]]` to row r of out, of the same type or wider.
///
/// # Panics
/// Also if T is f32 and O is not. The ids are the caller's: an id beyond the table reads other memory.
pub fn gather_rows<T: Float, O: Float>(
    device: &Device,
    from: &Buffer<T>,
    ids: &Buffer<u32>,
    scale: f32,
    out: &mut Buffer<O>,
) -> Result<(), CudaError> {
    if ids.is_empty() {
        return Ok(());
    }
    let cols = out.len() / ids.len();
    assert!(cols > 0 && out.len() == ids.len() * cols && from.len().is_multiple_of(cols));
    let kernel = match (T::NAME, O::NAME) {
        ("f32", "f32") => "gather_rows_f32",
        ("bf16", "bf16") => "gather_rows_bf16",
        ("bf16", "f32") => "gather_rows_bf16_f32",
        (from, to) => panic!("no rows from {from} to {to}"),
    };
    let args = [from.arg(), ids.arg(), Arg::F32(scale), out.arg(), arg(cols)];
    // SAFETY: the lengths were checked; ids are the caller's.
    unsafe { over_rows(device, kernel, ids.len(), &args) }
}

/// Writes row r of `from` to row `ids[r]` of out; ids are distinct.
pub fn scatter_rows<T: Float>(
    device: &Device,
    from: &Buffer<T>,
    ids: &Buffer<u32>,
    out: &mut Buffer<T>,
) -> Result<(), CudaError> {
    if ids.is_empty() {
        return Ok(());
    }
    let cols = from.len() / ids.len();
    assert!(cols > 0 && from.len() == ids.len() * cols && out.len().is_multiple_of(cols));
    let args = [from.arg(), ids.arg(), out.arg(), arg(cols)];
    // SAFETY: the lengths were checked; ids are the caller's.
    unsafe { over_rows(device, &format!("scatter_rows_{}", T::NAME), ids.len(), &args) }
}

/// Adds `factors[r] * from[r]` to row `ids[r]` of out, fused; ids are distinct. Without factors it adds the rows.
///
/// # Panics
/// Also if there are not as many factors. The ids are the caller's: an id beyond `out` writes other memory.
pub fn combine_rows<T: Float>(
    device: &Device,
    from: &Buffer<T>,
    ids: &Buffer<u32>,
    factors: Option<&Buffer<f32>>,
    out: &mut Buffer<T>,
) -> Result<(), CudaError> {
    if ids.is_empty() {
        return Ok(());
    }
    let cols = from.len() / ids.len();
    assert!(cols > 0 && from.len() == ids.len() * cols && out.len().is_multiple_of(cols));
    assert!(factors.is_none_or(|factors| factors.len() == ids.len()));
    let args = [from.arg(), ids.arg(), optional(factors), out.arg(), arg(cols)];
    // SAFETY: the lengths were checked; ids are the caller's.
    unsafe { over_rows(device, &format!("combine_rows_{}", T::NAME), ids.len(), &args) }
}

/// What [`combine_rows`] took, and the gradient of its result.
pub struct Combined<'a, T> {
    pub from: &'a Buffer<T>,
    pub ids: &'a Buffer<u32>,
    pub factors: &'a Buffer<f32>,
    pub dout: &'a Buffer<T>,
}

impl<T: Float> Combined<'_, T> {
    /// Writes the gradients of the rows, and of their factors.
    ///
    /// # Panics
    /// As [`combine_rows`].
    pub fn backward(
        &self,
        device: &Device,
        dfrom: &mut Buffer<T>,
        dfactors: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let &Combined { from, ids, factors, dout } = self;
        if ids.is_empty() {
            return Ok(());
        }
        let cols = from.len() / ids.len();
        assert!(cols > 0 && from.len() == ids.len() * cols && dout.len().is_multiple_of(cols));
        assert!(factors.len() == ids.len() && dfactors.len() == ids.len() && dfrom.len() == from.len());
        let args = [from.arg(), dout.arg(), ids.arg(), factors.arg(), dfrom.arg(), dfactors.arg(), arg(cols)];
        // SAFETY: the lengths were checked; ids are the caller's.
        unsafe { over_rows(device, &format!("combine_rows_backward_{}", T::NAME), ids.len(), &args) }
    }
}

/// Which rows of a batch have an id, for every id that occurs: what the gradient of an embedding is summed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrences {
    pub ids: Vec<u32>,
    /// Where an id's rows begin in `order`, and the end.
    pub starts: Vec<u32>,
    pub order: Vec<u32>,
}

impl Occurrences {
    /// Ids ascend, and rows within an id.
    pub fn of(ids: &[u32]) -> Occurrences {
        let mut order: Vec<u32> = (0..blocks(ids.len())).collect();
        order.sort_by_key(|row| (ids[*row as usize], *row));
        let (mut unique, mut starts) = (Vec::new(), Vec::new());
        for (at, row) in (0..).zip(&order) {
            let id = ids[*row as usize];
            if unique.last() != Some(&id) {
                unique.push(id);
                starts.push(at);
            }
        }
        starts.push(blocks(ids.len()));
        Occurrences { ids: unique, starts, order }
    }
}

/// Adds `scale * dx[t]` to row `ids[t]` of the gradient `[V, cols]`, in the order of the CPU.
///
/// # Panics
/// Also if an id is not below V.
pub fn embedding_backward<T: Float>(
    device: &Device,
    dx: &Buffer<T>,
    rows: &Occurrences,
    scale: f32,
    gradient: &mut Buffer<f32>,
) -> Result<(), CudaError> {
    let n = rows.order.len();
    if n == 0 {
        return Ok(());
    }
    let cols = dx.len() / n;
    assert!(cols > 0 && dx.len() == n * cols);
    assert!(rows.ids.iter().all(|id| (*id as usize + 1) * cols <= gradient.len()));
    let ids = Buffer::of(device, &rows.ids)?;
    let (starts, order) = (Buffer::of(device, &rows.starts)?, Buffer::of(device, &rows.order)?);
    let args = [dx.arg(), ids.arg(), starts.arg(), order.arg(), Arg::F32(scale), gradient.arg(), arg(cols)];
    // SAFETY: the lengths and ids were checked.
    unsafe { over_rows(device, &format!("embedding_backward_{}", T::NAME), rows.ids.len(), &args) }
}

/// Where the rows of a batch stand, on the device: `kernel::dropout::MaskKey`.
pub struct DropoutRows {
    pub(super) documents: Buffer<u32>,
    pub(super) positions: Buffer<u32>,
}

/// Some of these rows.
pub struct DropoutPart<'a> {
    part: DropoutRows,
    of: PhantomData<&'a DropoutRows>,
}

impl Deref for DropoutPart<'_> {
    type Target = DropoutRows;

    fn deref(&self) -> &DropoutRows {
        &self.part
    }
}

impl DropoutRows {
    /// Returns the rows of a range.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn slice(&self, range: Range<usize>) -> DropoutPart<'_> {
        let (documents, positions) = (self.documents.part(range.clone()), self.positions.part(range));
        DropoutPart { part: DropoutRows { documents, positions }, of: PhantomData }
    }

    /// Returns how many rows there are.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Returns places of n rows that are not known yet.
    pub(super) fn uninit(device: &Device, n: usize) -> Result<DropoutRows, CudaError> {
        Ok(DropoutRows { documents: Buffer::uninit(device, n)?, positions: Buffer::uninit(device, n)? })
    }

    pub fn new(device: &Device, rows: &[RowPlace]) -> Result<DropoutRows, CudaError> {
        let documents: Vec<u32> = rows.iter().map(|row| row.document).collect();
        let positions: Vec<u32> = rows.iter().map(|row| row.position).collect();
        Ok(DropoutRows {
            documents: Buffer::of(device, &documents)?,
            positions: Buffer::of(device, &positions)?,
        })
    }
}

/// What is dropped: `kernel::dropout::MaskKey` without its rows.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    pub seed: u64,
    pub step: u32,
    pub module: u32,
    /// `0 <= rate < 1`
    pub rate: f32,
}

impl Dropout {
    /// Writes x with values dropped to y: those that `kernel::dropout::dropout` drops.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is at most 1 - 2^-24")]
    pub fn apply<T: Float>(
        &self,
        device: &Device,
        x: &Buffer<T>,
        rows: &DropoutRows,
        y: &mut Buffer<T>,
    ) -> Result<(), CudaError> {
        let n = rows.positions.len();
        assert!((0.0..1.0).contains(&self.rate) && y.len() == x.len());
        if n == 0 {
            return Ok(());
        }
        let cols = x.len() / n;
        assert_eq!(x.len(), n * cols);
        let args = [
            x.arg(),
            y.arg(),
            arg(cols),
            rows.documents.arg(),
            rows.positions.arg(),
            Arg::U32(self.seed as u32),
            Arg::U32((self.seed >> 32) as u32),
            Arg::U32(self.step),
            Arg::U32(self.module),
            Arg::U32((f64::from(self.rate) * 4_294_967_296.0) as u32),
            Arg::F32(1.0 / (1.0 - self.rate)),
        ];
        // SAFETY: the lengths were checked.
        unsafe { over_rows(device, &format!("dropout_{}", T::NAME), n, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_listed_by_id_and_ascend_within_one() {
        let found = Occurrences::of(&[4, 0, 4, 6, 2, 4]);
        let want =
            Occurrences { ids: vec![0, 2, 4, 6], starts: vec![0, 1, 2, 5, 6], order: vec![1, 4, 0, 2, 5, 3] };
        assert_eq!(found, want);
        let none = Occurrences::of(&[]);
        assert!(none.ids.is_empty() && none.starts == [0]);
    }
}
