//! Where an artefact comes from: digests of what was read and written, kept in a manifest beside it, so that
//! `lctl replay` can make it again and compare.
//!
//! ```text
//! InputFiles::of_model(PATH), ..   which files a command reads, nothing read yet       -> InputFiles
//! Draft::begin(..)                 digests in the background while the command works   -> Draft
//! Draft::finish(..)                once the artefact is complete                       -> ARTEFACT.manifest.json
//! Manifest::open(FILE)             read back, every field checked                      -> Manifest
//! ```
//!
//! docs/provenance.md has the schema.

mod digest;
mod draft;
mod files;
mod host;
mod job;
mod licence;
mod manifest;
mod merkle;

pub use digest::{Digests, Error, NamedDigest, sha256_of_file, sha256_of_files, sha256_of_named};
pub use draft::{
    Draft, DraftError, Finished, Started, blocking_manifest, inherit, manifest_path, program_sha256,
    remove_manifest,
};
pub use files::{InputFile, InputFiles, Parent, parent_of};
pub use host::RunFacts;
pub use job::{
    EvalMode, EvalSettings, FinetuneSettings, GateSettings, ImatrixSettings, Job, MergeSettings, OnDevice,
    QuantizeSettings, TensorType,
};
pub use licence::{UNKNOWN, licence_beside, licence_of_model};
pub use manifest::{
    Content, DataLicence, Input, Licences, Manifest, ManifestError, Output, OutputRole, Program, Role,
    Samples,
};
pub use merkle::{MerkleTree, merkle_root_of_lines};

/// Returns bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
