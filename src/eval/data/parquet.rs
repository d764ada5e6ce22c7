//! Apache Parquet, as hubs store tables.

use super::{Error, Format, Input, Rows};
use crate::data::container::parquet_rows;

pub const FORMAT: Format = Format {
    name: "parquet",
    about: "Apache Parquet, as hubs store tables; a row's line is its number",
    is_text: false,
    parts: &[],
    read,
};

fn read(input: &Input) -> Result<Rows, Error> {
    let rows = parquet_rows(input.path, input.bytes)?;
    rows.into_iter()
        .map(|(number, row)| Ok((number, row.map_err(|error| Error::row(input, number, error.to_string()))?)))
        .collect()
}
