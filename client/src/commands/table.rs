//! Lists for people: columns.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

/// Puts rows under a header, without frames; nothing where there are no rows.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        table.add_row(row);
    }
    if table.is_empty() {
        return String::new();
    }
    let text = table.to_string();
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_under_one_another_and_no_line_ends_in_spaces() {
        let rows = [["orders", "1"], ["a", "22"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            table(&["NAME", "CLONES"], rows),
            "NAME    CLONES\norders  1\na       22"
        );
        assert_eq!(table(&["NAME"], []), "");
    }
}
