"""Unknown names are answered with the nearest known one."""

from companion.errors import unknown_name


def test_nearest_name_and_remedy():
    error = unknown_name("dataset", "Digitz", ["digits", "mnist"], "Or give a folder.")
    assert str(error) == (
        "unknown dataset 'Digitz'. Did you mean 'digits'? Known: digits, mnist. Or give a folder."
    )


def test_nothing_near():
    assert "Did you mean" not in str(unknown_name("dataset", "xyzzy", ["digits"]))


def test_nothing_known():
    assert "Known: none." in str(unknown_name("checkpoint", "a", []))
