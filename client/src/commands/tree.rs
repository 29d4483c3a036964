//! Lists for people: a tree in text.

use std::fmt;

/// A line, and what hangs from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    label: String,
    children: Vec<Self>,
}

impl Tree {
    /// Puts each row's words under one another; rows that begin alike share their beginning. Rows keep their order.
    pub(super) fn of_rows(rows: impl IntoIterator<Item = Vec<String>>) -> Forest {
        let mut forest = Forest(Vec::new());
        for row in rows {
            let mut level = &mut forest.0;
            for label in row {
                let index = match level.iter().position(|tree| tree.label == label) {
                    Some(index) => index,
                    None => {
                        level.push(Self {
                            label,
                            children: Vec::new(),
                        });
                        level.len() - 1
                    }
                };
                level = &mut level[index].children;
            }
        }
        forest
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, prefix: &str) -> fmt::Result {
        for (index, child) in self.children.iter().enumerate() {
            let is_last = index + 1 == self.children.len();
            let (branch, stem) = if is_last {
                ("└─ ", "   ")
            } else {
                ("├─ ", "│  ")
            };
            writeln!(f, "{prefix}{branch}{}", child.label)?;
            child.write(f, &format!("{prefix}{stem}"))?;
        }
        Ok(())
    }
}

/// Trees beside one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forest(Vec<Tree>);

impl fmt::Display for Forest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tree in &self.0 {
            writeln!(f, "{}", tree.label)?;
            tree.write(f, "")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_begin_alike_hang_from_one_line() {
        let rows = [
            ["db1", "orders", "new"],
            ["db1", "orders", "old"],
            ["db1", "users", "new"],
            ["db2", "orders", "new"],
        ];
        let forest = Tree::of_rows(rows.map(|row| row.map(str::to_owned).to_vec()));
        assert_eq!(
            forest.to_string(),
            "db1\n├─ orders\n│  ├─ new\n│  └─ old\n└─ users\n   └─ new\ndb2\n└─ orders\n   └─ new\n"
        );
    }
}
