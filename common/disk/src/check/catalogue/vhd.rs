//! Kinds of findings in VHD files.

use super::kinds;
use crate::check::report::{Kind, Severity};

kinds! {
    TOO_SHORT, Error, "vhd-file-too-short", "the file is shorter than a footer", "restore the disk from a recovery point or a backup";
    FILE_LENGTH, Warning, "vhd-file-length", "the file does not end with a whole sector", "convert the disk into a new file";
    FOOTER_INVALID, Warning, "vhd-footer-invalid", "the footer at the end is damaged or missing, the copy at the start is good", "`--repair` writes it anew from the copy";
    COPY_INVALID, Warning, "vhd-copy-invalid", "the footer's copy at the start is damaged, the footer is good", "`--repair` writes it anew from the footer";
    FOOTERS_INVALID, Error, "vhd-footers-invalid", "the footer and its copy are damaged", "restore the disk from a recovery point or a backup";
    FOOTERS_DIFFER, Error, "vhd-footers-differ", "the footer and its copy are valid, and differ in what the disk is", "restore the disk; programs disagree on which one counts";
    FOOTERS_APART, Note, "vhd-footers-apart", "the footer and its copy differ in what does not matter", "nothing";
    FOOTER_OLD, Note, "vhd-footer-old", "the footer has 511 bytes, as very old programs wrote it", "nothing; some programs do not know such a disk";
    FOOTER_RESERVED, Note, "vhd-footer-reserved", "reserved fields of the footer are not as they should be", "nothing";
    VERSION, Error, "vhd-version", "a version is not 1.0", "open the disk with the program that made it";
    TYPE, Error, "vhd-type", "the disk's type is not fixed, dynamic or differencing", "restore the disk from a recovery point or a backup";
    DATA_OFFSET, Warning, "vhd-data-offset", "a fixed disk names a dynamic header", "convert the disk into a new file";
    SAVED_STATE, Warning, "vhd-saved-state", "the disk belongs to a machine in saved state", "start the machine and shut it down before the disk is used elsewhere";
    SIZE, Error, "vhd-size", "the disk's size is zero, not whole sectors, or more than the format holds", "restore the disk from a recovery point or a backup";
    FIXED_LENGTH, Error, "vhd-fixed-length", "the file of a fixed disk is shorter than the disk", "restore the disk: its end was cut off";
    GEOMETRY, Note, "vhd-geometry", "the geometry gives another size than the disk has", "open the disk with its current size; QEMU trusts the geometry of some creators and cuts the disk";
    HEADER_PLACE, Error, "vhd-header-place", "the dynamic header is not inside the file", "restore the disk from a recovery point or a backup";
    HEADER_INVALID, Error, "vhd-header-invalid", "the dynamic header is damaged", "restore the disk; there is no copy of this header";
    HEADER_RESERVED, Note, "vhd-header-reserved", "reserved fields of the dynamic header are not as they should be", "nothing";
    BLOCK_SIZE, Error, "vhd-block-size", "blocks have a size that they cannot have", "restore the disk from a recovery point or a backup";
    BAT_PLACE, Error, "vhd-bat-place", "the BAT is not inside the file, or lies over other structures", "restore the disk from a recovery point or a backup";
    BAT_TOO_SHORT, Error, "vhd-bat-too-short", "the BAT has fewer entries than the disk's size needs", "restore the disk from a recovery point or a backup";
    BAT_OUTSIDE, Error, "vhd-bat-outside", "a block is not inside the file", "restore the disk: the block is lost";
    BAT_SHARED, Error, "vhd-bat-shared-block", "two blocks share space in the file", "restore the disk: one of the blocks holds the other's data";
    BAT_OVERLAP, Error, "vhd-bat-overlap", "a block lies over the headers, the BAT, a locator or the footer", "restore the disk: the block holds other things than its data";
    BAT_BEYOND_END, Warning, "vhd-bat-beyond-end", "blocks after the disk's end have space", "convert the disk into a new file";
    ALIGNMENT, Note, "vhd-alignment", "blocks are not all aligned alike: some on 4 KiB, some not", "nothing; convert the disk into a new file if it is slow";
    BITMAP_EMPTY, Warning, "vhd-bitmap-empty", "a block of a dynamic disk has space and an empty sector bitmap", "convert the disk with a program that honours bitmaps; QEMU shows data there, others zeros";
    BITMAP_PARTIAL, Note, "vhd-bitmap-partial", "blocks of a dynamic disk have sectors that their bitmaps call absent", "nothing; programs disagree on such sectors unless they hold zeros";
    LEAKED_SPACE, Note, "vhd-leaked-space", "space in the file belongs to nothing", "nothing, or convert the disk into a new file to have the space back";
    PARENT_LOCATOR, Error, "vhd-parent-locator", "the disk has a parent, and what names it is damaged or missing", "restore the disk; or name the parent to the program that opens it";
    PARENT_STRAY, Note, "vhd-parent-stray", "the disk has no parent, but names one", "nothing";
    PARENT_NOT_FOUND, Note, "vhd-parent-not-found", "the parent is not beside the disk, so that it was not looked at", "put the parent beside the disk and check again";
    PARENT_IN_USE, Note, "vhd-parent-in-use", "the parent is in use, so that it was not looked at", "check again when it is not; nobody should write to a parent";
    PARENT_UNREADABLE, Error, "vhd-parent-unreadable", "what lies in the parent's place is no sound VHD", "check the parent, and restore it";
    PARENT_OTHER, Error, "vhd-parent-other", "the file in the parent's place is another disk", "find the right parent; a merge would mix two histories";
}
