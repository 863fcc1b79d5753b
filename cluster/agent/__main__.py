"""`python -m cluster.agent`: the agent of one node."""

from cluster.agent.agent import main

if __name__ == "__main__":
    main()
