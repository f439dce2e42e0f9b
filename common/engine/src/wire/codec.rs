//! Codec of `Transfer`: plain protobuf on the wire, with bulk payloads copied as little as tonic allows.
//!
//! Sending, a frame's payload is appended once to a buffer of the exact size. Receiving, it is a slice
//! of the receive buffer, which is not reused while the slice lives.

use bytes::{BufMut, Bytes};
use prost::Message;
use sitepair_proto::v1::transfer_request::Kind;
use sitepair_proto::v1::{DataFrame, TransferReply, TransferRequest};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::endpoint::FRAME_PAYLOAD_MAX;

/// Largest message of a transfer in bytes: a full frame with as many extents as it may have.
pub(super) const TRANSFER_MESSAGE_BYTES_MAX: usize = FRAME_PAYLOAD_MAX + (64 << 10);

/// Key of `TransferRequest.frame`: field 2, length-delimited.
const KEY_FRAME: u8 = (2 << 3) | 2;
/// Key of `DataFrame.payload`: field 15, length-delimited.
const KEY_PAYLOAD: u8 = (15 << 3) | 2;

/// Both directions start small and grow to what a message needs; each frame leaves at once, because
/// collecting several in one buffer would copy them.
fn frame_buffers() -> BufferSettings {
    BufferSettings::new(16 << 10, 32 << 10)
}

/// The sender's side of `Transfer`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SenderCodec;

impl Codec for SenderCodec {
    type Encode = TransferRequest;
    type Decode = TransferReply;
    type Encoder = RequestEncoder;
    type Decoder = ProstDecoder<TransferReply>;

    fn encoder(&mut self) -> Self::Encoder {
        RequestEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::default())
    }
}

/// The receiver's side of `Transfer`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ReceiverCodec;

impl Codec for ReceiverCodec {
    type Encode = TransferReply;
    type Decode = TransferRequest;
    type Encoder = ProstEncoder<TransferReply>;
    type Decoder = RequestDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        RequestDecoder
    }
}

#[derive(Debug)]
pub(super) struct RequestEncoder;

impl Encoder for RequestEncoder {
    type Item = TransferRequest;
    type Error = Status;

    fn encode(&mut self, item: TransferRequest, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let overflow = |e| Status::internal(format!("encode a message of a transfer: {e}"));
        let Some(Kind::Frame(mut frame)) = item.kind else {
            return item.encode(dst).map_err(overflow);
        };
        let payload = std::mem::take(&mut frame.payload);
        dst.reserve(encoded_bytes(&frame, &payload));
        put_frame(&frame, &payload, dst).map_err(overflow)
    }

    fn buffer_settings(&self) -> BufferSettings {
        frame_buffers()
    }
}

#[derive(Debug)]
pub(super) struct RequestDecoder;

impl Decoder for RequestDecoder {
    type Item = TransferRequest;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<TransferRequest>, Status> {
        // `bytes` fields are split off the receive buffer, not copied: DecodeBuf::copy_to_bytes.
        TransferRequest::decode(src)
            .map(Some)
            .map_err(|e| Status::invalid_argument(format!("decode a message of a transfer: {e}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        frame_buffers()
    }
}

/// Writes `TransferRequest { frame }`; `header` is the frame without its payload.
fn put_frame(
    header: &DataFrame,
    payload: &Bytes,
    dst: &mut impl BufMut,
) -> Result<(), prost::EncodeError> {
    dst.put_u8(KEY_FRAME);
    prost::encode_length_delimiter(frame_bytes(header, payload), dst)?;
    header.encode(dst)?;
    if !payload.is_empty() {
        dst.put_u8(KEY_PAYLOAD);
        prost::encode_length_delimiter(payload.len(), dst)?;
        dst.put_slice(payload);
    }
    Ok(())
}

fn frame_bytes(header: &DataFrame, payload: &Bytes) -> usize {
    let field = match payload.len() {
        0 => 0,
        length => 1 + prost::length_delimiter_len(length) + length,
    };
    header.encoded_len() + field
}

fn encoded_bytes(header: &DataFrame, payload: &Bytes) -> usize {
    let frame = frame_bytes(header, payload);
    1 + prost::length_delimiter_len(frame) + frame
}

#[cfg(test)]
mod tests {
    use sitepair_proto::v1::FrameExtent;

    use super::*;

    fn frame(payload: usize) -> DataFrame {
        DataFrame {
            disk: vec![1; 16].into(),
            extents: vec![
                FrameExtent {
                    offset: 0,
                    length: 4096,
                    zero: false,
                },
                FrameExtent {
                    offset: 1 << 40,
                    length: 7,
                    zero: true,
                },
            ],
            hash: vec![2; 32].into(),
            payload: (0..payload).map(|i| i.to_le_bytes()[0]).collect(),
        }
    }

    #[test]
    fn frames_are_plain_protobuf_on_the_wire() {
        for size in [0, 1, 127, 128, 4096, 1 << 20] {
            let whole = TransferRequest {
                kind: Some(Kind::Frame(frame(size))),
            };
            let mut header = frame(size);
            let payload = std::mem::take(&mut header.payload);
            let mut ours = Vec::new();
            put_frame(&header, &payload, &mut ours).unwrap();
            assert_eq!(ours, whole.encode_to_vec(), "payload of {size}");
            assert_eq!(
                ours.len(),
                encoded_bytes(&header, &payload),
                "payload of {size}"
            );
            assert_eq!(TransferRequest::decode(&ours[..]).unwrap(), whole);
        }
    }

    #[test]
    fn a_received_payload_is_a_slice_of_the_receive_buffer() {
        let whole = TransferRequest {
            kind: Some(Kind::Frame(frame(1 << 20))),
        };
        let received = Bytes::from(whole.encode_to_vec());
        let range = received.as_ptr_range();
        let Some(Kind::Frame(decoded)) = TransferRequest::decode(received.clone()).unwrap().kind
        else {
            panic!("a frame");
        };
        assert!(range.contains(&decoded.payload.as_ptr()));
    }

    #[test]
    fn the_largest_frame_fits_the_message_limit() {
        let mut largest = frame(FRAME_PAYLOAD_MAX);
        let extent = FrameExtent {
            offset: u64::MAX,
            length: u64::MAX,
            zero: true,
        };
        largest.extents = vec![extent; crate::endpoint::FRAME_EXTENTS_MAX];
        assert!(largest.encoded_len() + 16 < TRANSFER_MESSAGE_BYTES_MAX);
    }
}
