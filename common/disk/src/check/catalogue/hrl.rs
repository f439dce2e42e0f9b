//! Kinds of findings in change logs.

use super::kinds;
use crate::check::report::{Kind, Severity};

kinds! {
    TOO_SHORT, Error, "hrl-file-too-short", "the file ends before the structures that every change log has", "remove it from the journal: the cycle is sent again, or is lost";
    COOKIE, Error, "hrl-cookie", "the file does not begin as a change log", "check that this is the file meant";
    VERSION, Error, "hrl-version", "the version is not 2.0, or the type is not 0", "read it with the program that made it";
    HEADER_CHECKSUM, Note, "hrl-header-checksum", "the header's checksum does not hold", "nothing if Windows made the file, whose checksum follows another rule; otherwise the header was damaged";
    NOT_CLOSED, Error, "hrl-not-closed", "the log was not closed: its writer was interrupted", "nothing: such a log counts for nothing, and the cycle is sent again";
    HEADER_ERROR, Warning, "hrl-header-error", "the writer has noted an error in the header", "find the reason in the logs of the program that wrote it";
    HEADER_RESERVED, Note, "hrl-header-reserved", "reserved bytes of the header are not zero", "nothing";
    METADATA_BYTES, Error, "hrl-metadata-bytes", "metadata blocks have a size that they cannot have", "the cycle must come from elsewhere";
    END, Error, "hrl-end", "the log's end is not inside the file", "the cycle must come from elsewhere: the file was cut off";
    AFTER_END, Note, "hrl-after-end", "the file goes on after the log's end", "nothing; the rest is never read";
    SIZE, Warning, "hrl-size", "the header gives another size than the log has", "nothing, if the rest is clean";
    BLOCK_CHECKSUM, Error, "hrl-block-checksum", "a metadata block's header is damaged", "the cycle must come from elsewhere";
    BLOCK_ENTRIES, Error, "hrl-block-entries", "a metadata block says that it has more entries than fit", "the cycle must come from elsewhere";
    BLOCK_CHAIN, Error, "hrl-block-chain", "a metadata block names no block before it, and is not the first", "the cycle must come from elsewhere";
    BLOCK_RESERVED, Note, "hrl-block-reserved", "reserved bytes, or places without an entry, are not zero", "nothing";
    ENTRY_CHECKSUM, Error, "hrl-entry-checksum", "an entry is damaged", "the cycle must come from elsewhere";
    ENTRY_OPERATION, Error, "hrl-entry-operation", "an entry's operation or place of data is not known", "read it with the program that made it";
    ENTRY_RANGE, Error, "hrl-entry-range", "an entry is empty, not whole sectors, or past the largest offset", "the cycle must come from elsewhere";
    ENTRY_TIME, Note, "hrl-entry-time", "an entry is older than the one before it", "nothing; clocks are set back";
    DATA_PLACE, Error, "hrl-data-place", "the data of a block's entries does not fill the space before the block", "the cycle must come from elsewhere";
    DATA_CHECKSUM, Error, "hrl-data-checksum", "an entry's data is damaged", "the cycle must come from elsewhere";
    ENTRY_COUNT, Error, "hrl-entry-count", "the log has another number of entries than its header says", "the cycle must come from elsewhere";
}
