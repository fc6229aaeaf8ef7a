from haystack_integrations.components.rankers.secondpass.ranker import SecondpassRanker

__all__ = ["SecondpassRanker"]
