"""A dumb model of the kernel's tables, to apply steps to."""

from dataclasses import replace

from trimaran.net.kernel import (
    Add,
    Address,
    ChangeLink,
    Conflict,
    CreateLink,
    Delete,
    DeleteLink,
    Entry,
    Forwarding,
    KernelState,
    Neighbour,
    Route,
    Step,
    entry_key,
)


class KernelModel:
    """Does what the kernel does with each step, and refuses what it refuses."""

    def __init__(self, state: KernelState) -> None:
        self.links = dict(state.links)
        self.entries: set[Entry] = {
            *state.addresses,
            *state.neighbours,
            *state.forwardings,
            *state.routes,
        }

    def apply(self, step: Step) -> None:
        match step:
            case CreateLink(link):
                assert link.name not in self.links, "EEXIST"
                self.links[link.name] = link
            case ChangeLink(link):
                present = self.links[link.name]
                if link.mac and link.mac != present.mac:
                    # The kernel flushes a device's neighbours when its address changes.
                    self._drop(link.name, Neighbour)
                mac = link.mac or present.mac
                self.links[link.name] = replace(
                    present, mtu=link.mtu, mac=mac, up=link.up, alias=link.alias
                )
            case DeleteLink(name):
                del self.links[name]
                self._drop(name, Address, Neighbour, Forwarding, Route)
            case Delete(entry):
                assert entry in self.entries, "ENOENT"
                self.entries.remove(entry)
            case Add(entry, replace=replaces):
                assert entry.link in self.links, "ENODEV"
                same = {other for other in self.entries if entry_key(other) == entry_key(entry)}
                assert replaces or not same, "EEXIST"
                self.entries -= same
                self.entries.add(entry)
            case Conflict(text):
                raise AssertionError(text)

    def _drop(self, link: str, *sorts: type) -> None:
        self.entries = {
            entry for entry in self.entries if entry.link != link or not isinstance(entry, sorts)
        }

    def state(self) -> KernelState:
        def pick(sort: type) -> frozenset:  # type: ignore[type-arg]
            return frozenset(entry for entry in self.entries if isinstance(entry, sort))

        return KernelState(
            dict(self.links), pick(Address), pick(Neighbour), pick(Forwarding), pick(Route)
        )
