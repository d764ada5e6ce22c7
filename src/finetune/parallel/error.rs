//! Why processes do not come together, or part.

use std::io;

use crate::cuda::CudaError;
use crate::error::Diagnostic;

/// Why processes do not come together, or part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the environment's {name} is `{value}`: {why}")]
    Variable { name: &'static str, value: String, why: String },

    #[error("the environment has {present}, but no {name}")]
    Missing { present: &'static str, name: &'static str },

    #[error("cannot listen at {address} for the other processes")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },

    #[error("rank 0 cannot be reached at {address} within {seconds} s")]
    Unreachable {
        address: String,
        seconds: u64,
        #[source]
        source: io::Error,
    },

    #[error("not all processes came within {seconds} s: no word of rank {}", shown(.ranks))]
    Absent { ranks: Vec<usize>, seconds: u64 },

    #[error("rank {rank} cannot take part: {why}")]
    Refused { rank: usize, why: String },

    #[error("rank {rank} is gone: its connection ended")]
    Lost {
        rank: usize,
        #[source]
        source: io::Error,
    },

    #[error("rank {rank} gave no sign of life for {seconds} s")]
    Silent { rank: usize, seconds: u64 },

    #[error("rank {rank} ended the run: {why}")]
    Failed { rank: usize, why: String },

    #[error("rank {rank} sent {found} where {expected} was expected")]
    Protocol { rank: usize, found: String, expected: String },

    #[error("the parameters of rank {} are no longer those of rank 0", shown(.ranks))]
    Diverged { ranks: Vec<usize> },

    #[error("interrupted while waiting for the other processes")]
    Interrupted,

    #[error(transparent)]
    Device(#[from] CudaError),
}

fn shown(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// Returns the rank that the run ended for, if one did.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Error::Refused { rank, .. }
            | Error::Lost { rank, .. }
            | Error::Silent { rank, .. }
            | Error::Failed { rank, .. }
            | Error::Protocol { rank, .. } => Some(*rank),
            Error::Variable { .. }
            | Error::Missing { .. }
            | Error::Listen { .. }
            | Error::Unreachable { .. }
            | Error::Absent { .. }
            | Error::Diverged { .. }
            | Error::Interrupted
            | Error::Device(_) => None,
        }
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Variable { .. } => {
                "torchrun or srun set these variables; without them lctl is one process (docs/finetune.md)".into()
            }
            Error::Missing { present, name } => {
                format!("set {name}, too, or unset {present}: without these variables lctl is one process")
            }
            Error::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "another program listens there (torchrun itself does, where it shares its store): give all processes a free MASTER_PORT".into()
            }
            Error::Listen { .. } => {
                "MASTER_ADDR must be an address of rank 0's machine, and MASTER_PORT one that this user may take".into()
            }
            Error::Unreachable { .. } => {
                "does rank 0 run? on its machine, too, MASTER_ADDR must be the address that the others reach (not one of /etc/hosts that loops back)".into()
            }
            Error::Absent { .. } => "every process has to be started; their own errors say why they were not here".into(),
            Error::Refused { .. } => {
                "start all processes with the same lctl, recipe, data, model, kind of device and number of processes".into()
            }
            Error::Lost { .. } | Error::Silent { .. } | Error::Failed { .. } => {
                "what that process said last tells why; --resume, of all processes, goes on from the last checkpoint".into()
            }
            Error::Protocol { .. } => "is another program talking to MASTER_PORT?".into(),
            Error::Diverged { .. } => {
                "nothing was written of this step; a machine computes wrongly: check its memory, and --resume with another in its place"
                    .into()
            }
            Error::Interrupted => return None,
            Error::Device(error) => return error.hint(),
        })
    }

    fn exit_code(&self) -> u8 {
        match self {
            Error::Interrupted => 130,
            Error::Device(error) => error.exit_code(),
            _ => 2,
        }
    }
}
