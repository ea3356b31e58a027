"""Fed-Heart-Disease: four hospitals, a shared logistic regression, an intercept of each hospital's own."""
