//! How a kernel is launched.

use std::ffi::c_void;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// An address in the device's memory; 0 is null.
    Pointer(u64),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    F64(f64),
    /// A struct, by its words.
    Words([u32; 9]),
}

impl Arg {
    pub(super) fn address(&self) -> *mut c_void {
        let address: *const c_void = match self {
            Arg::Pointer(x) | Arg::U64(x) => std::ptr::from_ref(x).cast(),
            Arg::U32(x) => std::ptr::from_ref(x).cast(),
            Arg::I32(x) => std::ptr::from_ref(x).cast(),
            Arg::F32(x) => std::ptr::from_ref(x).cast(),
            Arg::F64(x) => std::ptr::from_ref(x).cast(),
            Arg::Words(x) => std::ptr::from_ref(x).cast(),
        };
        address.cast_mut()
    }
}

/// A kernel, the shape of its grid, and its arguments.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    pub kernel: &'a str,
    /// Blocks.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory that a block has beyond what the kernel declares.
    pub shared: u32,
    pub args: &'a [Arg],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_handed_over_by_address() {
        let args = [Arg::Pointer(7), Arg::F32(1.5), Arg::Words([1, 2, 3, 4, 5, 6, 7, 8, 9])];
        // SAFETY: each address is that of a value of the type.
        unsafe {
            assert_eq!(*args[0].address().cast::<u64>(), 7);
            assert_eq!(*args[1].address().cast::<f32>(), 1.5);
            assert_eq!(*args[2].address().cast::<[u32; 9]>(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        }
    }
}
