//! Role records: what decides which site may write.

use sitepair_model::group::RoleRecord;

/// What is read is what was written: any bytes that decode are those that encode.
pub fn decode(input: &[u8]) {
    if let Ok(record) = RoleRecord::decode(input) {
        assert_eq!(record.encode(), input);
    }
}
