//! Attention within documents that lie one after another: `kernel::attention::documents`.

use std::cmp::Reverse;

use super::super::CudaError;
use super::super::buffer::{Buffer, Float};
use super::super::device::Device;
use super::super::launch::{Arg, Launch};
use super::{THREADS, arg, blocks};
use crate::kernel::attention::AttentionShape;

/// The largest head that a kernel takes.
pub const MAX_HEAD_DIM: usize = 256;

/// Where a tile's rows begin, where its document does, and where that ends; the last word is unused.
type Tile = [u32; 4];

/// Which kernels compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Tensor cores: bf16, head sizes of 64, 96, 128 and 256.
    Mma,
    /// In f32: every head size up to [`MAX_HEAD_DIM`].
    Plain,
}

/// The sizes of one kernel's blocks: those of `attention_mma.cu` and `attention_plain.cu`, as tests compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    /// Rows of a tile.
    rows: usize,
    threads: u32,
    shared: usize,
}

/// A kernel of each pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    Queries,
    Keys,
}

impl Family {
    /// Returns the family for heads of that size in that type, whose rows are that many values apart.
    pub fn choose<T: Float>(head_dim: usize, strides: [usize; 3]) -> Family {
        let is_wide = strides.iter().all(|stride| stride.is_multiple_of(8));
        match T::NAME == "bf16" && is_wide && [64, 96, 128, 256].contains(&head_dim) {
            true => Family::Mma,
            false => Family::Plain,
        }
    }

    /// Returns the head size that a kernel is compiled for.
    fn compiled(self, head_dim: usize) -> usize {
        match self {
            Family::Mma => head_dim,
            Family::Plain => {
                [64, 128, 256].into_iter().find(|size| head_dim <= *size).unwrap_or(MAX_HEAD_DIM)
            }
        }
    }

    fn block(self, pass: Pass, head_dim: usize) -> Block {
        let d = self.compiled(head_dim);
        let small = d <= 128;
        match (self, pass) {
            (Family::Plain, _) => {
                let rows = if small { 32 } else { 16 };
                let n_tiles = if pass == Pass::Forward { 2 } else { 3 };
                let shared = 4 * (n_tiles * rows * (d + 1) + rows * (rows + 1));
                Block { rows, threads: blocks(4 * rows), shared }
            }
            (Family::Mma, Pass::Forward) => {
                let keys = if small { 64 } else { 32 };
                Block { rows: 64, threads: 128, shared: (64 + 4 * keys) * (d + 8) * 2 }
            }
            (Family::Mma, Pass::Queries) => {
                let (keys, stages) = (if d <= 64 { 64 } else { 32 }, if small { 2 } else { 1 });
                Block { rows: 64, threads: 128, shared: (2 * 64 + 2 * stages * keys) * (d + 8) * 2 }
            }
            (Family::Mma, Pass::Keys) => {
                let (keys, stages) = if small { (64, 2) } else { (32, 1) };
                let shared = (2 * keys + 2 * stages * 32) * (d + 8) * 2 + 2 * stages * 32 * 4;
                Block { rows: keys, threads: 128, shared }
            }
        }
    }

    /// Returns the rows of a tile of queries over pages: `attention_paged.cu` and `attention_paged_mma.cu`.
    pub(super) fn paged_rows(self, head_dim: usize) -> usize {
        self.block(Pass::Forward, head_dim).rows
    }

    /// Returns the threads and the shared memory of a block of such a tile.
    pub(super) fn paged_block(self, head_dim: usize) -> (u32, usize) {
        let block = self.block(Pass::Forward, head_dim);
        (block.threads, block.shared)
    }

    /// Returns the kernel of such tiles.
    pub(super) fn paged_kernel<T: Float>(self, head_dim: usize) -> String {
        let d = self.compiled(head_dim);
        match self {
            Family::Mma => format!("attention_paged_mma_{d}"),
            Family::Plain => format!("attention_paged_plain_{}_{d}", T::NAME),
        }
    }

    fn kernel<T: Float>(self, pass: Pass, head_dim: usize) -> String {
        let d = self.compiled(head_dim);
        let pass = match pass {
            Pass::Forward => "attention",
            Pass::Queries => "attention_dq",
            Pass::Keys => "attention_dkv",
        };
        match self {
            Family::Mma => format!("{pass}_mma_{d}"),
            Family::Plain => format!("{pass}_plain_{}_{d}", T::NAME),
        }
    }
}

/// Returns tiles of at most `rows` rows of documents that begin at `cu`, those with most work first. A tile of queries works on the
/// keys before its end, one of keys on the queries behind its begin.
fn tiles(cu: &[usize], rows: usize, window: Option<usize>, of_keys: bool) -> Vec<Tile> {
    let mut tiles: Vec<(usize, Tile)> = Vec::new();
    for ends in cu.windows(2) {
        let (begin, end) = (ends[0], ends[1]);
        for first in (begin..end).step_by(rows) {
            let past = end.min(first + rows);
            let reach = if of_keys { end - first } else { past - begin };
            let work = window.map_or(reach, |window| reach.min(window.saturating_add(rows)));
            tiles.push((work, [blocks(first), blocks(begin), blocks(end), 0]));
        }
    }
    // stable, so that the list is one and the same
    tiles.sort_by_key(|(work, _)| Reverse(*work));
    tiles.into_iter().map(|(_, tile)| tile).collect()
}

/// The documents of a batch and one layer's rules, on the device.
pub struct Documents {
    shape: AttentionShape,
    family: Family,
    n_rows: usize,
    /// Values from row to row of q, of k and v, and of out.
    strides: [usize; 3],
    passes: [(Pass, Buffer<u32>); 3],
}

/// Queries, keys and values: `[T, n_heads, head_dim]` and `[T, n_kv_heads, head_dim]`.
pub struct Operands<'a, T> {
    pub q: &'a Buffer<T>,
    pub k: &'a Buffer<T>,
    pub v: &'a Buffer<T>,
}

/// What the forward left, and the gradient of its result.
pub struct Saved<'a, T> {
    pub out: &'a Buffer<T>,
    pub lse: &'a Buffer<f32>,
    pub dout: &'a Buffer<T>,
}

/// Where gradients go.
pub struct Gradients<'a, T> {
    pub dq: &'a mut Buffer<T>,
    pub dk: &'a mut Buffer<T>,
    pub dv: &'a mut Buffer<T>,
}

impl Documents {
    /// Prepares the attention of documents that begin at `cu`, ascending from 0, with T at its end; rows are dense.
    ///
    /// # Panics
    /// If `cu` is not so, heads are larger than [`MAX_HEAD_DIM`], or a KV head's group is not whole.
    pub fn new<T: Float>(
        device: &Device,
        shape: AttentionShape,
        cu: &[usize],
    ) -> Result<Documents, CudaError> {
        let (q_stride, kv_stride) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
        let family = Family::choose::<T>(shape.head_dim, [q_stride, kv_stride, q_stride]);
        Documents::with_family(device, shape, cu, family)
    }

    /// [`Documents::new`] with kernels of one's choice: to compare them.
    ///
    /// # Panics
    /// As there, if the family has no such head size, or there are more than 65,535 tiles (a million rows).
    pub fn with_family(
        device: &Device,
        shape: AttentionShape,
        cu: &[usize],
        family: Family,
    ) -> Result<Documents, CudaError> {
        assert!(
            (1..=MAX_HEAD_DIM).contains(&shape.head_dim) && shape.n_heads.is_multiple_of(shape.n_kv_heads)
        );
        assert!(family == Family::Plain || [64, 96, 128, 256].contains(&shape.head_dim));
        assert!(cu.first() == Some(&0) && cu.is_sorted());
        let pass = |pass: Pass| {
            let tiles = tiles(cu, family.block(pass, shape.head_dim).rows, shape.window, pass == Pass::Keys);
            assert!(tiles.len() <= 65_535, "{} tiles of attention", tiles.len());
            Ok::<_, CudaError>((pass, Buffer::of(device, tiles.as_flattened())?))
        };
        let passes = [pass(Pass::Forward)?, pass(Pass::Queries)?, pass(Pass::Keys)?];
        let (q_stride, kv_stride) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
        let n_rows = cu[cu.len() - 1];
        Ok(Documents { shape, family, n_rows, strides: [q_stride, kv_stride, q_stride], passes })
    }

    /// Returns the kernels that compute.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Writes the attention of every row, `[T, n_heads, head_dim]`, and its log-sum-exp of scores, `[T, n_heads]`.
    ///
    /// # Panics
    /// If the lengths disagree.
    pub fn forward<T: Float>(
        &self,
        device: &Device,
        operands: &Operands<'_, T>,
        out: &mut Buffer<T>,
        lse: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        self.check(operands);
        assert!(out.len() == operands.q.len() && lse.len() == self.n_rows * self.shape.n_heads);
        let Operands { q, k, v } = operands;
        let args = [q.arg(), k.arg(), v.arg(), out.arg(), lse.arg()];
        // SAFETY: the lengths were checked.
        unsafe { self.launch::<T>(device, 0, &args) }
    }

    /// Writes the gradients of q, k and v.
    ///
    /// # Panics
    /// If the lengths disagree.
    pub fn backward<T: Float>(
        &self,
        device: &Device,
        operands: &Operands<'_, T>,
        saved: &Saved<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), CudaError> {
        self.check(operands);
        let Operands { q, k, v } = operands;
        let Saved { out, lse, dout } = saved;
        let n_pairs = self.n_rows * self.shape.n_heads;
        assert!(out.len() == q.len() && dout.len() == q.len() && lse.len() == n_pairs);
        assert!(gradients.dq.len() == q.len());
        assert!(gradients.dk.len() == k.len() && gradients.dv.len() == k.len());
        let delta = Buffer::<f32>::uninit(device, n_pairs)?;
        let kernel = format!("attention_delta_{}", T::NAME);
        let args = [
            out.arg(),
            dout.arg(),
            delta.arg(),
            arg(self.n_rows),
            arg(self.shape.n_heads),
            arg(self.shape.head_dim),
            arg(self.strides[2]),
        ];
        let grid = (blocks(n_pairs.div_ceil(8)), 1);
        // SAFETY: the lengths were checked.
        unsafe {
            device.launch(&Launch { kernel: &kernel, grid, threads: THREADS, shared: 0, args: &args })?
        };
        let common = [q.arg(), k.arg(), v.arg(), dout.arg(), lse.arg(), delta.arg()];
        let of_queries: Vec<Arg> = common.into_iter().chain([gradients.dq.arg()]).collect();
        let of_keys: Vec<Arg> = common.into_iter().chain([gradients.dk.arg(), gradients.dv.arg()]).collect();
        // SAFETY: as above.
        unsafe {
            self.launch::<T>(device, 1, &of_queries)?;
            self.launch::<T>(device, 2, &of_keys)
        }
    }

    fn check<T: Float>(&self, Operands { q, k, v }: &Operands<'_, T>) {
        assert!(self.family == Family::Plain || T::NAME == "bf16");
        assert!(q.len() == self.n_rows * self.strides[0]);
        assert!(k.len() == self.n_rows * self.strides[1] && v.len() == k.len());
    }

    /// # Safety
    /// As [`Device::launch`]; the tiles and rules are added to the arguments.
    unsafe fn launch<T: Float>(&self, device: &Device, pass: usize, args: &[Arg]) -> Result<(), CudaError> {
        let (pass, tiles) = &self.passes[pass];
        let Block { threads, shared, .. } = self.family.block(*pass, self.shape.head_dim);
        let n_heads = if *pass == Pass::Keys { self.shape.n_kv_heads } else { self.shape.n_heads };
        let args: Vec<Arg> = args.iter().copied().chain([tiles.arg(), Arg::Words(self.rules())]).collect();
        let kernel = self.family.kernel::<T>(*pass, self.shape.head_dim);
        // all heads of the longest tiles first, those of a group beside one another: they read the same keys
        let grid = (blocks(n_heads), blocks(tiles.len() / 4));
        let launch = Launch { kernel: &kernel, grid, threads, shared: blocks(shared), args: &args };
        // SAFETY: the caller's.
        unsafe { device.launch(&launch) }
    }

    /// `AttentionRules` of `attention.cuh`.
    fn rules(&self) -> [u32; 9] {
        let shape = &self.shape;
        // a window beyond every position is none
        let window = shape.window.filter(|window| *window < self.n_rows).unwrap_or(0);
        [
            blocks(shape.n_heads),
            blocks(shape.n_heads / shape.n_kv_heads),
            blocks(window),
            blocks(shape.head_dim),
            shape.scale.to_bits(),
            shape.softcap.unwrap_or(0.0).to_bits(),
            blocks(self.strides[0]),
            blocks(self.strides[1]),
            blocks(self.strides[2]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn every_row_is_in_one_tile_and_the_longest_come_first() {
        let cu = [0, 100, 100, 101, 300];
        for of_keys in [false, true] {
            let found = tiles(&cu, 64, None, of_keys);
            let mut rows: Vec<u32> =
                found.iter().flat_map(|[first, _, end, _]| *first..(*first + 64).min(*end)).collect();
            rows.sort_unstable();
            assert!(rows.iter().copied().eq(0..300));
            // most keys lie before the last queries, most queries behind the first keys
            assert_eq!(found[0], if of_keys { [101, 101, 300, 0] } else { [293, 101, 300, 0] });
        }
        let local = tiles(&[0, 1000], 64, Some(10), false);
        assert_eq!(local[0], [64, 0, 1000, 0], "a window makes all but the first alike, in their order");
    }

    #[test]
    fn tensor_cores_are_used_where_they_can_be() {
        assert_eq!(Family::choose::<bf16>(128, [4096, 1024, 4096]), Family::Mma);
        assert_eq!(Family::choose::<f32>(128, [4096, 1024, 4096]), Family::Plain);
        assert_eq!(Family::choose::<bf16>(80, [2560, 2560, 2560]), Family::Plain);
        assert_eq!(Family::choose::<bf16>(64, [4097, 1024, 4096]), Family::Plain);
        assert_eq!(Family::Plain.kernel::<bf16>(Pass::Keys, 80), "attention_dkv_plain_bf16_128");
        assert_eq!(Family::Mma.kernel::<bf16>(Pass::Forward, 96), "attention_mma_96");
    }

    /// The kernels' own sizes, where they are written.
    #[test]
    fn sizes_are_those_of_the_kernels() {
        let mma = [include_str!("../kernels/attention_mma.cuh"), include_str!("../kernels/attention_mma.cu")]
            .concat();
        for line in [
            "static constexpr int QUERIES = 64, KEYS = D <= 128 ? 64 : 32, THREADS = 128;",
            "static constexpr int SHARED = (QUERIES + 4 * KEYS) * MMA_PITCH<D> * 2;",
            "static constexpr int QUERIES = 64, KEYS = D <= 64 ? 64 : 32, STAGES = D <= 128 ? 2 : 1, THREADS = 128;",
            "static constexpr int SHARED = (2 * QUERIES + 2 * STAGES * KEYS) * MMA_PITCH<D> * 2;",
            "static constexpr int KEYS = D <= 128 ? 64 : 32, QUERIES = 32, STAGES = D <= 128 ? 2 : 1, SPLIT = D <= 128 ? 1 : 2;",
            "static constexpr int COLUMNS = D / SPLIT, THREADS = KEYS / 16 * SPLIT * 32;",
            "static constexpr int SHARED = (2 * KEYS + 2 * STAGES * QUERIES) * MMA_PITCH<D> * 2 + 2 * STAGES * QUERIES * 4;",
            "constexpr int MMA_PITCH = D + 8;",
        ] {
            assert!(mma.contains(line), "{line}");
        }
        let plain = include_str!("../kernels/attention_plain.cuh");
        for line in [
            "constexpr int PLAIN_ROWS = D <= 128 ? 32 : 16;",
            "constexpr int PLAIN_THREADS = 4 * PLAIN_ROWS<D>;",
            "constexpr int PLAIN_PITCH = D + 1;",
        ] {
            assert!(plain.contains(line), "{line}");
        }
        let rules = include_str!("../kernels/attention.cuh");
        assert!(rules.contains(
            "uint32_t n_heads, group, window, head_dim;\n    float scale, cap;\n    uint32_t q_stride, kv_stride, out_stride;"
        ));
    }

    #[test]
    fn blocks_fit_the_smallest_devices() {
        for pass in [Pass::Forward, Pass::Queries, Pass::Keys] {
            for d in [64, 96, 128, 256] {
                // 99 KiB is what a block of capability 8.6 and 8.9 can have
                assert!(Family::Mma.block(pass, d).shared <= 99 << 10);
                assert!(Family::Plain.block(pass, d).shared <= 99 << 10);
            }
        }
    }
}
