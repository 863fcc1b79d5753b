"""The key `augment`: training documents that are rewritten right before they are tokenized."""

from pydantic import Field

from ropewalk.cluster.config import Section

CODE = ("*.py", "*.pyi", "*.c", "*.h", "*.cc", "*.cpp", "*.hpp", "*.rs", "*.go", "*.java", "*.js", "*.ts", "*.sh", "*.sql")


class FillInTheMiddle(Section):
    """Move the middle of a document behind its end, so that a model learns to fill it in (Bavarian et al. 2022)."""

    rate: float = Field(default=0.5, gt=0, le=1, description="share of the documents that are rearranged")
    spm_rate: float = Field(default=0.5, ge=0, le=1, description="share of those in which the suffix comes before the prefix")
    of: tuple[str, ...] = Field(default=CODE, description="globs of ids or sources whose documents are rearranged; ['*']: all")
    prefix: str = Field(default="<|fim_prefix|>", description="token before the prefix; a tokenizer that is trained gets it")
    middle: str = Field(default="<|fim_middle|>", description="token before the middle")
    suffix: str = Field(default="<|fim_suffix|>", description="token before the suffix")

    @property
    def tokens(self) -> tuple[str, str, str]:
        """The three tokens."""
        return self.prefix, self.middle, self.suffix


class Augment(Section):
    """What is done with training documents; the validation split stays as it is."""

    function: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="MODULE:FUNCTION of your own from (text, id) to a text; it must depend on nothing else",
    )
    fim: FillInTheMiddle | None = Field(default=None, description="fill-in-the-middle for code, such as {rate: 0.5}")
