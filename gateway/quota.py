"""How many of something there may be: of one identity, so that nobody has them all, and altogether."""

from collections import Counter

from gateway.errors import GatewayError


class Quota:
    def __init__(
        self, most: int, most_of_identity: int, error: type[GatewayError], what: str, setting: str
    ) -> None:
        """`what` there are so many of, in the words of the error; `setting` is that of one identity."""
        self._most = most
        self._most_of_identity = most_of_identity
        self._error = error
        self._what = what
        self._setting = setting
        self.taken = 0
        """By all."""
        self._of: Counter[str] = Counter()

    def take(self, identity: str) -> None:
        """One more; `give_back` when it is over. Raises the error."""
        if self._of[identity] >= self._most_of_identity:
            raise self._error(
                f"{identity!r} has {self._most_of_identity} {self._what} open, as many as"
                f" {self._setting} allows."
            )
        if self.taken >= self._most:
            raise self._error(f"The gateway has as many {self._what} open as it takes.")
        self.taken += 1
        self._of[identity] += 1

    def give_back(self, identity: str) -> None:
        self.taken -= 1
        self._of[identity] -= 1
        if not self._of[identity]:
            del self._of[identity]
