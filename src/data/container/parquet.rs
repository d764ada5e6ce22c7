//! Apache Parquet; a row's line is its number in the file, from 1.

use std::path::Path;

use bytes::Bytes;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Number, Value as Json};

use super::{Container, Rows};
use crate::data::{Error, RowError};

pub const PARQUET: Container = Container {
    name: "parquet",
    about: "Apache Parquet, uncompressed or compressed with Snappy or gzip; nested columns as in published data sets",
    extensions: &["parquet"],
    read,
};

/// The library panics on some damaged files: that is an error, too.
fn read(path: &Path, bytes: &[u8]) -> Result<Rows, Error> {
    std::panic::catch_unwind(|| rows(path, bytes))
        .unwrap_or_else(|_| Err(Error::Parquet { path: path.to_owned(), what: "the file is damaged".into() }))
}

fn rows(path: &Path, bytes: &[u8]) -> Result<Rows, Error> {
    let fail = |what: String| Error::Parquet { path: path.to_owned(), what };
    let reader =
        SerializedFileReader::new(Bytes::copy_from_slice(bytes)).map_err(|error| fail(error.to_string()))?;
    let rows = reader.get_row_iter(None).map_err(|error| fail(error.to_string()))?;
    let mut read = Rows::new();
    for (index, row) in rows.enumerate() {
        let number = index + 1;
        let row = row.map_err(|error| fail(format!("row {number}: {error}")))?;
        let columns = row.get_column_iter().map(|(name, field)| Ok((name.clone(), json(field)?)));
        read.push((number, columns.collect()));
    }
    Ok(read)
}

/// Returns a value as JSON. Times and decimals, which no format has a use for, are text.
fn json(field: &Field) -> Result<Json, RowError> {
    let float = |value: f64| Number::from_f64(value).map_or(Json::Null, Json::Number);
    Ok(match field {
        Field::Null => Json::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => float(f64::from(*value)),
        Field::Double(value) => float(*value),
        Field::Str(text) => text.clone().into(),
        // files of old writers do not say that their bytes are text
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data())
            .map_err(|_| RowError::Malformed("a value is neither text nor a number".into()))?
            .into(),
        Field::ListInternal(list) => list.elements().iter().map(json).collect::<Result<_, _>>()?,
        Field::Group(group) => {
            let fields = group.get_column_iter().map(|(name, field)| Ok((name.clone(), json(field)?)));
            Json::Object(fields.collect::<Result<Map<_, _>, RowError>>()?)
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, value)| {
                let key = json(key)?;
                Ok((key.as_str().map_or_else(|| key.to_string(), str::to_owned), json(value)?))
            });
            Json::Object(entries.collect::<Result<Map<_, _>, RowError>>()?)
        }
        other => other.to_string().into(),
    })
}
