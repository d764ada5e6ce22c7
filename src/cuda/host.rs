//! The stand-in for a GPU: the same kernels as C++, run on the host one after another. For tests, not for speed.
//!
//! It is stricter than a GPU. Arguments are compared with the kernel's types; new memory is NaN; what lies around every buffer must be
//! untouched when it is freed; copies through pinned memory are made as late as they may; memory can be short, and the device be lost, on
//! demand.

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::CudaError;
use super::launch::{Arg, Launch};
use super::probe::DeviceFacts;
use super::product::{Gemm, Product, Sizes};
use super::staging::{Staging, Transfers};

/// How the stand-in behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Memory that it gives.
    pub memory_bytes: u64,
    /// Threads and blocks run in descending order: results must not show it.
    pub descending: bool,
    /// It is lost behind so many launches and products.
    pub lost_after: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options { memory_bytes: 8 << 30, descending: false, lost_after: None }
    }
}

pub(super) fn facts() -> DeviceFacts {
    let memory_bytes = Options::default().memory_bytes;
    DeviceFacts {
        index: 0,
        name: "the host's stand-in".to_owned(),
        compute_capability: (8, 0),
        memory_bytes,
        driver: "none: the stand-in".to_owned(),
        cublas: Some("none: the stand-in".to_owned()),
    }
}

/// `host::Entry` of `host_entry.h`.
#[repr(C)]
struct Entry {
    name: *const c_char,
    call: *const c_void,
    kinds: *const c_char,
}

unsafe extern "C" {
    fn lctl_host_kernel(name: *const c_char) -> *const Entry;
    fn lctl_host_launch(
        entry: *const Entry,
        grid_x: u32,
        grid_y: u32,
        threads: u32,
        shared_bytes: u32,
        arguments: *const *mut c_void,
        descending: bool,
    );
    fn lctl_host_product(
        a: *const c_void,
        b: *const c_void,
        operands_are_bf16: bool,
        a_is_columns: bool,
        b_is_columns: bool,
        rows: usize,
        cols: usize,
        inner: usize,
        factor: f32,
        keep: f32,
        out: *mut c_void,
        out_is_bf16: bool,
    );
}

/// Stand-ins that this process has made.
static MADE: AtomicU64 = AtomicU64::new(0);

/// What runs blocks is one for the process (`host.h`).
static MACHINE: Mutex<()> = Mutex::new(());

pub(super) struct Host {
    options: Options,
    /// Which of the process's it is.
    number: u64,
    used: Arc<AtomicU64>,
    done: AtomicU64,
    staging: Mutex<Staging<Half>>,
    pending: Arc<Pending>,
}

/// Copies that were asked for and not made yet.
#[derive(Default)]
struct Pending(Mutex<Vec<Transfer>>);

struct Transfer {
    from: u64,
    to: u64,
    bytes: usize,
}

impl Pending {
    fn add(&self, transfer: Transfer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(transfer);
    }

    /// Makes them: what is asked for now comes behind them.
    fn make(&self) {
        for Transfer { from, to, bytes } in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: whoever asked made sure of both; blocks and halves make the copies before they are freed.
            unsafe { std::ptr::copy_nonoverlapping(pointer(from).cast_const(), pointer(to), bytes) };
        }
    }
}

/// What stands in for pinned memory.
pub(super) struct Half {
    memory: Box<[MaybeUninit<u8>]>,
    pending: Arc<Pending>,
}

impl Drop for Half {
    fn drop(&mut self) {
        self.pending.make();
    }
}

/// Memory between guards.
pub(super) struct Block {
    memory: Vec<Line>,
    address: u64,
    bytes: usize,
    used: Arc<AtomicU64>,
    pending: Arc<Pending>,
}

/// What memory is aligned to: more than any kernel asks for.
const LINE: usize = 64;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; LINE]);

const GUARD: u8 = 0xa5;

impl Block {
    pub fn address(&self) -> u64 {
        self.address
    }

    fn guards_hold(&self) -> bool {
        // behind the values: the rest of their last line, and a line
        let (whole, rest) = (self.bytes / LINE, self.bytes % LINE);
        let behind = self.memory[1 + whole..].iter().flat_map(|line| line.0).skip(rest);
        self.memory[0].0.into_iter().chain(behind).all(|byte| byte == GUARD)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pending.make();
        self.used.fetch_sub(self.bytes as u64, Ordering::Relaxed);
        if !std::thread::panicking() {
            assert!(self.guards_hold(), "a kernel wrote beyond a buffer of {} bytes", self.bytes);
        }
    }
}

impl Host {
    pub fn new(options: Options) -> Host {
        Host {
            options,
            number: MADE.fetch_add(1, Ordering::Relaxed),
            used: Arc::default(),
            done: AtomicU64::new(0),
            staging: Mutex::default(),
            pending: Arc::default(),
        }
    }

    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let total = self.options.memory_bytes;
        Ok((total.saturating_sub(self.used.load(Ordering::Relaxed)), total))
    }

    pub fn identity(&self) -> Result<[u8; 16], CudaError> {
        let mut identity = [0; 16];
        identity[..8].copy_from_slice(&u64::from(std::process::id()).to_le_bytes());
        identity[8..].copy_from_slice(&self.number.to_le_bytes());
        Ok(identity)
    }

    pub fn n_multiprocessors(&self) -> Result<u32, CudaError> {
        Ok(1)
    }

    pub fn alloc(&self, bytes: usize) -> Result<Block, CudaError> {
        let (wanted, total) = (bytes as u64, self.options.memory_bytes);
        let before = self.used.fetch_add(wanted, Ordering::Relaxed);
        if before + wanted > total {
            self.used.fetch_sub(wanted, Ordering::Relaxed);
            return Err(CudaError::OutOfMemory {
                index: 0,
                wanted,
                free: total.saturating_sub(before),
                total,
            });
        }
        let mut memory = vec![Line([GUARD; LINE]); bytes.div_ceil(LINE) + 2];
        // all bits set is a NaN in f32, f64 and bf16: what is read before it is written shows
        for (i, line) in memory[1..].iter_mut().enumerate() {
            let inside = bytes.saturating_sub(i * LINE).min(LINE);
            line.0[..inside].fill(0xff);
        }
        // behind the first guard
        let address = (memory.as_mut_ptr().expose_provenance() + LINE) as u64;
        Ok(Block { memory, address, bytes, used: self.used.clone(), pending: self.pending.clone() })
    }

    /// # Safety
    /// As `Device::write`.
    pub unsafe fn write(&self, to: u64, bytes: &[u8]) -> Result<(), CudaError> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's.
        unsafe { staging.write(self, to, bytes) }
    }

    /// # Safety
    /// As `Device::read`.
    pub unsafe fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.synchronize()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's.
        unsafe { staging.read(self, from, bytes) }
    }

    /// # Safety
    /// As `Device::copy`.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        self.pending.make();
        if self.options.lost_after.is_some_and(|most| self.done.load(Ordering::Relaxed) >= most) {
            return Err(lost("a copy within it"));
        }
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(pointer(from).cast_const(), pointer(to), bytes) };
        Ok(())
    }

    /// # Safety
    /// As `Device::fill_zero`.
    pub unsafe fn fill_zero(&self, to: u64, bytes: usize) -> Result<(), CudaError> {
        self.pending.make();
        // SAFETY: the caller's.
        unsafe { std::ptr::write_bytes(pointer(to), 0, bytes) };
        Ok(())
    }

    /// # Safety
    /// As `Device::launch`.
    ///
    /// # Panics
    /// If there is no such kernel, or it takes other arguments.
    pub unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        let &Launch { kernel, grid, threads, shared, args } = launch;
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        self.count(kernel)?;
        let name = CString::new(kernel).unwrap_or_default();
        // SAFETY: a string that ends; entries are constants.
        let entry = unsafe { lctl_host_kernel(name.as_ptr()).as_ref() };
        let entry = entry.unwrap_or_else(|| panic!("there is no kernel `{kernel}`"));
        // SAFETY: a constant string that ends.
        let kinds = unsafe { CStr::from_ptr(entry.kinds) }.to_bytes();
        let given: Vec<u8> = args.iter().map(kind).collect();
        assert!(kinds == given, "`{kernel}` takes other arguments: {} for {}", text(&given), text(kinds));
        let addresses: Vec<*mut c_void> = args.iter().map(Arg::address).collect();
        let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let descending = self.options.descending;
        // SAFETY: the caller's; the machine is ours alone.
        unsafe {
            lctl_host_launch(entry, grid.0, grid.1, threads, shared, addresses.as_ptr(), descending);
        }
        Ok(())
    }

    /// # Safety
    /// As `Driver::product`.
    pub unsafe fn product(&self, gemm: &Gemm) -> Result<(), CudaError> {
        self.count("a product")?;
        let &Gemm { product, sizes: Sizes { m, n, k }, a, b, out, factor, keep } = gemm;
        // rows, cols, inner of a row-major product of the second operand with the first
        let (left, right, shape, columns) = match product {
            Product::Forward => (b, a, (m, n, k), (false, true)),
            Product::InputGradient => (b, a, (m, k, n), (false, false)),
            Product::WeightGradient => (b, a, (n, k, m), (true, false)),
        };
        // SAFETY: the caller's.
        unsafe {
            lctl_host_product(
                pointer(left.address).cast(),
                pointer(right.address).cast(),
                a.is_bf16,
                columns.0,
                columns.1,
                shape.0,
                shape.1,
                shape.2,
                factor,
                keep,
                pointer(out.address).cast(),
                out.is_bf16,
            );
        }
        Ok(())
    }

    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.pending.make();
        match self.options.lost_after {
            Some(most) if self.done.load(Ordering::Relaxed) > most => Err(lost("computing")),
            _ => Ok(()),
        }
    }

    /// Counts what is done, behind all copies; errors once the device is lost.
    fn count(&self, doing: &str) -> Result<(), CudaError> {
        self.pending.make();
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        match self.options.lost_after {
            Some(most) if done > most => Err(lost(doing)),
            _ => Ok(()),
        }
    }
}

impl Transfers for Host {
    type Half = Half;

    fn half(&self, bytes: usize) -> Result<Half, CudaError> {
        Ok(Half { memory: Box::new_uninit_slice(bytes), pending: self.pending.clone() })
    }

    fn start(half: &mut Half) -> *mut MaybeUninit<u8> {
        half.memory.as_mut_ptr()
    }

    unsafe fn send(&self, half: &mut Half, range: Range<usize>, to: u64) -> Result<(), CudaError> {
        let (from, bytes) = (address(&mut half.memory[range.clone()]), range.len());
        self.pending.add(Transfer { from, to, bytes });
        Ok(())
    }

    unsafe fn receive(&self, half: &mut Half, range: Range<usize>, from: u64) -> Result<(), CudaError> {
        let (to, bytes) = (address(&mut half.memory[range.clone()]), range.len());
        self.pending.add(Transfer { from, to, bytes });
        Ok(())
    }

    fn wait(&self, _half: &mut Half) -> Result<(), CudaError> {
        self.pending.make();
        Ok(())
    }
}

fn address(memory: &mut [MaybeUninit<u8>]) -> u64 {
    memory.as_mut_ptr().expose_provenance() as u64
}

fn lost(doing: &str) -> CudaError {
    CudaError::Lost { index: 0, doing: doing.to_owned(), reason: "as it was told to be".to_owned() }
}

fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// The letters of `host_entry.h`.
fn kind(arg: &Arg) -> u8 {
    match arg {
        Arg::Pointer(_) => b'p',
        Arg::U32(_) | Arg::I32(_) => b'i',
        Arg::U64(_) => b'l',
        Arg::F32(_) => b'f',
        Arg::F64(_) => b'd',
        Arg::Words(_) => b's',
    }
}

fn text(kinds: &[u8]) -> String {
    String::from_utf8_lossy(kinds).into_owned()
}
