//! Text on the wire is bytes, whatever Cap'n Proto says: OCaml's programs do not look at what they send.

use bstr::BString;

/// Returns the bytes of a text.
pub(crate) fn bytes(text: capnp::text::Reader<'_>) -> BString {
    text.as_bytes().into()
}

/// Returns bytes as a text to send.
pub(crate) fn text(bytes: &[u8]) -> capnp::text::Reader<'_> {
    capnp::text::Reader::from(bytes)
}

/// Returns the texts of a list.
pub(crate) fn texts(list: capnp::text_list::Reader<'_>) -> Result<Vec<BString>, capnp::Error> {
    list.iter().map(|text| text.map(bytes)).collect()
}

/// Returns the length of a list, as messages count.
pub(crate) fn length(items: usize) -> Result<u32, capnp::Error> {
    u32::try_from(items).map_err(|_| capnp::Error::failed("too many for a list".to_owned()))
}
