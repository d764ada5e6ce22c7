//! Event files as TensorBoard reads them: TFRecords of `Event` messages with scalars.
//!
//! A record is its length (u64), the masked CRC-32C of that, its bytes, and their masked CRC-32C, all little-endian
//! (tensorflow/core/lib/io/record_writer.h); messages are those of tensorflow/core/util/event.proto.

/// Returns the record that a file begins with.
pub fn first_record(wall_time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    put_double(&mut event, 1, wall_time);
    put_bytes(&mut event, 3, b"brain.Event:2");
    record(&event)
}

/// Returns a record of scalars of a step.
pub fn scalars(wall_time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, tag.as_bytes());
        put_key(&mut message, 2, 5);
        message.extend((*value as f32).to_le_bytes());
        put_bytes(&mut summary, 1, &message);
    }
    let mut event = Vec::new();
    put_double(&mut event, 1, wall_time);
    put_key(&mut event, 2, 0);
    put_varint(&mut event, step);
    put_bytes(&mut event, 5, &summary);
    record(&event)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let checks = [masked(crc32c(&length)), masked(crc32c(data))].map(u32::to_le_bytes);
    [&length[..], &checks[0], data, &checks[1]].concat()
}

fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Returns the CRC of RFC 3720 (Castagnoli's polynomial, reflected), bit by bit: events are short.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the check value of the CRC catalogue.
    #[test]
    fn the_crc_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn records_frame_their_messages() {
        let record = scalars(1.5, 300, &[("loss", 2.0)]);
        let length = u64::from_le_bytes(record[..8].try_into().unwrap()) as usize;
        assert_eq!(record.len(), 16 + length);
        // wall_time 1.5, step 300 as a varint, then the summary
        let data = &record[12..12 + length];
        assert_eq!(&data[..9], [&[0x09][..], &1.5f64.to_le_bytes()].concat());
        assert_eq!(&data[9..12], [0x10, 0xac, 0x02]);
        assert!(data.ends_with(&[0x0a, 4, b'l', b'o', b's', b's', 0x15, 0, 0, 0, 0x40]));
    }
}
