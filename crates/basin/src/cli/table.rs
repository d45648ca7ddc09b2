//! Pure. Tables and sheets for people: aligned columns without lines.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

use super::text::clean;

/// Between two columns.
const GAP: u16 = 3;

/// Columns with a heading each. What a cell holds is printed on one line, harmless.
pub fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = bare();
    table.set_header(columns.iter().copied());
    fill(table, rows)
}

/// Things about one resource: a name and a value a line.
#[derive(Debug, Default)]
pub struct Sheet {
    pairs: Vec<Vec<String>>,
    sections: Vec<(String, String)>,
}

impl Sheet {
    pub fn pair(&mut self, name: &str, value: impl Into<String>) -> &mut Sheet {
        self.pairs.push(vec![format!("{name}:"), value.into()]);
        self
    }

    /// Only where there is something to say.
    pub fn some(&mut self, name: &str, value: Option<impl Into<String>>) -> &mut Sheet {
        match value {
            Some(value) => self.pair(name, value),
            None => self,
        }
    }

    /// A table below, under a title; left out when it has no rows.
    pub fn section(&mut self, title: &str, columns: &[&str], rows: &[Vec<String>]) -> &mut Sheet {
        if !rows.is_empty() {
            self.sections.push((title.to_owned(), table(columns, rows)));
        }
        self
    }

    pub fn render(&self) -> String {
        let mut text = fill(bare(), &self.pairs);
        for (title, table) in &self.sections {
            text.push_str(&format!("{title}:\n"));
            for line in table.lines() {
                text.push_str(&format!("  {line}\n"));
            }
        }
        text
    }
}

fn bare() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    table
}

fn fill(mut table: Table, rows: &[Vec<String>]) -> String {
    for row in rows {
        table.add_row(row.iter().map(|cell| match cell.as_str() {
            "" => "-".to_owned(),
            cell => clean(cell),
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|r| r.iter().map(|c| (*c).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_are_aligned() {
        let expect = "\
NAME       STATE     AGE
web        running   3d
database   -         5m
";
        let rows = rows(&[&["web", "running", "3d"], &["database", "", "5m"]]);
        assert_eq!(table(&["NAME", "STATE", "AGE"], &rows), expect);
    }

    #[test]
    fn wide_and_hostile_cells_stay_on_their_line() {
        let expect = "\
NAME    OS
größe   x\\ny\\u{1b}[31m
";
        assert_eq!(table(&["NAME", "OS"], &rows(&[&["größe", "x\ny\u{1b}[31m"]])), expect);
    }

    #[test]
    fn a_sheet() {
        let mut sheet = Sheet::default();
        sheet
            .pair("Name", "web")
            .some("Problem", None::<String>)
            .some("Host", Some("a"))
            .section("Disks", &["VOLUME", "SIZE"], &rows(&[&["web-disk0", "20GiB"]]))
            .section("Nics", &["MAC"], &[]);
        let expect = "\
Name:   web
Host:   a
Disks:
  VOLUME      SIZE
  web-disk0   20GiB
";
        assert_eq!(sheet.render(), expect);
    }
}
