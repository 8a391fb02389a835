"""The dashboard: pages over a folder of studies, with optuna-dashboard behind them for what it draws already."""
