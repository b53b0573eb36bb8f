//! Which ids a user without root's rights has for its own user namespaces: `subuid(5)`, `subgid(5)`. Pure.

use crate::ids::IDS;

/// What `newuidmap(1)` is told to map, in its order: inside, outside, count.
pub(crate) type Line = [u32; 3];

/// Returns how the ids 0 to 65535 of a namespace are those of a user: 0 its own, the others from its ranges in `file`, which
/// names it by number or name. `None`: the ranges are too few.
pub(crate) fn map(file: &str, (id, name): (u32, &str), own: u32) -> Option<Vec<Line>> {
    let mut lines = vec![[0, own, 1]];
    let mut next = 1;
    for (first, count) in file.lines().filter_map(|line| range(line, id, name)) {
        let count = count.min(IDS - next);
        // The kernel takes neither an id twice nor the last one, which stands for none.
        let end = first.checked_add(count)?;
        let is_new = !lines.iter().any(|[_, start, length]| first < start + length && *start < end);
        if count > 0 && is_new {
            lines.push([next, first, count]);
            next += count;
        }
    }
    (next == IDS).then_some(lines)
}

fn range(line: &str, id: u32, name: &str) -> Option<(u32, u32)> {
    let mut fields = line.trim().split(':');
    let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
    let is_ours = owner.parse() == Ok(id) || (!name.is_empty() && owner == name);
    is_ours.then_some((first.parse().ok()?, count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMY: (u32, &str) = (1000, "amy");

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let expected = Some(vec![[0, 1000, 1], [1, 100_000, 65_535]]);
        assert_eq!(map("bob:1:65536\namy:100000:65536\n", AMY, 1000), expected);
        assert_eq!(map("1000:100000:65536", AMY, 1000), expected);
        assert_eq!(map("1000:100000:65536", (1000, ""), 1000), expected);
        assert_eq!(map(":100000:65536", (1000, ""), 1000), None);
        assert_eq!(map("amyx:100000:65536\n10:1:65536", AMY, 1000), None);
    }

    #[test]
    fn several_ranges_are_put_together_and_none_twice() {
        let file = "amy:100000:30000\namy:110000:65536\namy:200000:65536\n";
        assert_eq!(map(file, AMY, 5), Some(vec![[0, 5, 1], [1, 100_000, 30_000], [30_001, 200_000, 35_535]]));
        assert_eq!(map("amy:900:65536", AMY, 1000), None);
    }

    #[test]
    fn too_few_ids_and_what_is_no_line_are_no_map() {
        for file in
            ["", "amy:100000:65534", "amy:100000", "amy:x:65536", "amy:4294967295:65536", "amy:-1:70000", "# amy"]
        {
            assert_eq!(map(file, AMY, 1000), None, "{file}");
        }
    }
}
