//! Messages of a transfer, from bytes to our types.

use prost::Message as _;
use sitepair_model::peer::{TransferBegin, TransferCommit};
use sitepair_proto::convert::TransferStep;
use sitepair_proto::v1;

/// One message. What can be converted is converted back to the same message.
pub fn messages(input: &[u8]) {
    let Ok(request) = v1::TransferRequest::decode(input) else {
        return;
    };
    if let Some(v1::transfer_request::Kind::Begin(begin)) = request.kind.clone()
        && let Ok(begin) = TransferBegin::try_from(begin)
    {
        let again = TransferBegin::try_from(v1::TransferBegin::from(begin.clone()));
        assert_eq!(again.unwrap(), begin);
    }
    if let Ok(TransferStep::Commit(commit)) = TransferStep::try_from(request) {
        let again = TransferCommit::try_from(v1::TransferCommit::from(commit.clone()));
        assert_eq!(again.unwrap(), commit);
    }
}
