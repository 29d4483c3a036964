//! The containers that are being created: until that is done the engine does not know them by name.

use std::sync::Arc;

use tokio::sync::watch;

/// The names of containers under way, one twice if it is asked for twice.
#[derive(Debug, Clone, Default)]
pub(super) struct Creating(Arc<watch::Sender<Vec<String>>>);

impl Creating {
    /// Counts `name` among them until what is returned is dropped.
    pub(super) fn begin(&self, name: &str) -> Creation {
        self.0.send_modify(|names| names.push(name.to_owned()));
        Creation {
            all: self.clone(),
            name: name.to_owned(),
        }
    }

    /// Returns once `name` is not among them. Others are not waited for.
    pub(super) async fn ended(&self, name: &str) {
        let is_over = |names: &Vec<String>| !names.iter().any(|other| other == name);
        // An error would mean that the sender is gone, which we hold.
        let _ = self.0.subscribe().wait_for(is_over).await;
    }
}

/// One creation under way.
#[derive(Debug)]
pub(super) struct Creation {
    all: Creating,
    name: String,
}

impl Drop for Creation {
    fn drop(&mut self) {
        self.all.0.send_modify(|names| {
            if let Some(place) = names.iter().position(|name| *name == self.name) {
                names.swap_remove(place);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn only_creations_of_the_same_name_are_waited_for() {
        let creating = Creating::default();
        let (first, second) = (creating.begin("orders"), creating.begin("orders"));
        let other = creating.begin("customers");
        assert_eq!(creating.ended("invoices").now_or_never(), Some(()));
        drop(first);
        assert_eq!(creating.ended("orders").now_or_never(), None);
        drop(second);
        assert_eq!(creating.ended("orders").now_or_never(), Some(()));
        assert_eq!(creating.ended("customers").now_or_never(), None);
        drop(other);
    }

    #[tokio::test]
    async fn who_waits_is_told_of_the_end() {
        let creating = Creating::default();
        let creation = creating.begin("orders");
        tokio::join!(creating.ended("orders"), async { drop(creation) });
    }
}
